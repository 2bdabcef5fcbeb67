// What went wrong with a request, as the page shows it: the server's own words where it had any.

import type { ErrorBody } from './types';

export class Failure extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly remedy: string | null,
    readonly requestId: string | null,
  ) {
    super(message);
  }

  static fromBody(body: ErrorBody, requestId: string | null = null): Failure {
    return new Failure(body.code, body.message, body.remedy, requestId);
  }

  /** Of an answer that is no success. Whatever the body is, the status and the request's id remain. */
  static fromAnswer(status: number, body: string, headers: { get(name: string): string | null }): Failure {
    const requestId = headers.get('X-Request-Id');
    const retry_s = headers.get('Retry-After');
    const later = retry_s ? `Try again in ${retry_s} s.` : null;
    const error = errorOf(body);
    if (!error) {
      return new Failure(`http_${status}`, `The server answered ${status} without saying why.`, later ?? 'See the server’s log.', requestId);
    }
    return new Failure(error.code, error.message, error.remedy ?? later, requestId);
  }

  /** Of anything that was thrown. */
  static from(thrown: unknown): Failure {
    if (thrown instanceof Failure) return thrown;
    if (thrown instanceof TypeError && /fetch|network|load failed/i.test(thrown.message)) return Failure.unreachable();
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    return new Failure('page', message, null, null);
  }

  static unreachable(): Failure {
    return new Failure('unreachable', 'The server does not answer.', 'See whether wrenn still runs and this machine reaches it.', null);
  }
}

function errorOf(body: string): ErrorBody | null {
  try {
    const { error } = JSON.parse(body);
    if (typeof error?.code !== 'string' || typeof error?.message !== 'string') return null;
    return { code: error.code, message: error.message, remedy: typeof error.remedy === 'string' ? error.remedy : null };
  } catch {
    return null; // no JSON: a proxy's page, perhaps
  }
}
