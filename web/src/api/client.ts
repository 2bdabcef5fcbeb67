// The server's routes, one method each. Sends the key, turns refusals into `Failure`; keeps no state besides.

import { LOGS_BYTES, PAGES_MAX, PAGE_ITEMS } from '../limits';
import { Failure } from './failure';
import type {
  Changed,
  CreateRequest,
  FileEntry,
  ForkRequest,
  Forked,
  Host,
  Key,
  Logs,
  OnTimeout,
  Operation,
  Page,
  RunningCommand,
  Sample,
  Sandbox,
  Snapshot,
  Template,
  Timing,
} from './types';

type Query = Record<string, string | number | undefined>;

interface Call {
  query?: Query;
  json?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export class Client {
  readonly #key: string;

  constructor(key: string) {
    this.#key = key;
  }

  // Who and where

  whoami(): Promise<Key> {
    return this.#json('GET', '/v1/whoami');
  }

  host(): Promise<Host> {
    return this.#json('GET', '/v1/host');
  }

  // Sandboxes

  create(request: CreateRequest, idempotencyKey: string): Promise<Changed> {
    return this.#json('POST', '/v1/sandboxes', { json: request, headers: { 'Idempotency-Key': idempotencyKey } });
  }

  sandbox(id: string): Promise<Sandbox> {
    return this.#json('GET', sandboxPath(id));
  }

  destroy(id: string): Promise<Changed> {
    return this.#json('DELETE', sandboxPath(id));
  }

  pause(id: string): Promise<Changed> {
    return this.#json('POST', sandboxPath(id, 'pause'), { json: {} });
  }

  resume(id: string): Promise<Changed> {
    return this.#json('POST', sandboxPath(id, 'resume'), { json: {} });
  }

  repair(id: string): Promise<Changed> {
    return this.#json('POST', sandboxPath(id, 'repair'), { json: {} });
  }

  fork(id: string, request: ForkRequest): Promise<Forked> {
    return this.#json('POST', sandboxPath(id, 'fork'), { json: request });
  }

  rollback(id: string, snapshot: string): Promise<Changed> {
    return this.#json('POST', sandboxPath(id, 'rollback'), { json: { snapshot } });
  }

  timeout(id: string, timeout_s: number | null, on_timeout: OnTimeout): Promise<Sandbox> {
    return this.#json('POST', sandboxPath(id, 'timeout'), { json: { timeout_s, on_timeout } });
  }

  metrics(id: string, since_unix_ms: number): Promise<{ samples: Sample[] }> {
    return this.#json('GET', sandboxPath(id, 'metrics'), { query: { since_unix_ms } });
  }

  logs(id: string): Promise<Logs> {
    return this.#json('GET', sandboxPath(id, 'logs'), { query: { bytes: LOGS_BYTES } });
  }

  // Commands

  commands(id: string): Promise<{ items: RunningCommand[] }> {
    return this.#json('GET', sandboxPath(id, 'exec'));
  }

  signal(id: string, pid: number, signal: number): Promise<void> {
    return this.#nothing('POST', sandboxPath(id, `exec/${pid}/signal`), { json: { signal } });
  }

  // Files

  listFiles(id: string, path: string): Promise<{ entries: FileEntry[] }> {
    return this.#json('GET', sandboxPath(id, 'files/list'), { query: { path, depth: 1 } });
  }

  async download(id: string, path: string): Promise<Blob> {
    return (await this.#call('GET', sandboxPath(id, 'files'), { query: { path } })).blob();
  }

  /** By XMLHttpRequest: `fetch` does not tell how far an upload has come. */
  upload(id: string, path: string, body: Blob, progress: (sent: number) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open('PUT', address(sandboxPath(id, 'files'), { path }));
      request.setRequestHeader('X-API-Key', this.#key);
      request.setRequestHeader('Content-Type', 'application/octet-stream');
      request.upload.onprogress = (event) => progress(event.loaded);
      request.onerror = () => reject(Failure.unreachable());
      request.onload = () => {
        if (request.status < 300) return resolve();
        reject(Failure.fromAnswer(request.status, request.responseText, { get: (name) => request.getResponseHeader(name) }));
      };
      request.send(body);
    });
  }

  mkdir(id: string, path: string): Promise<void> {
    return this.#nothing('POST', sandboxPath(id, 'files/mkdir'), { json: { path } });
  }

  move(id: string, from: string, to: string): Promise<void> {
    return this.#nothing('POST', sandboxPath(id, 'files/move'), { json: { from, to } });
  }

  remove(id: string, path: string): Promise<void> {
    return this.#nothing('POST', sandboxPath(id, 'files/remove'), { json: { path } });
  }

  // Snapshots, templates, operations

  snapshots(sandbox?: string): Promise<Snapshot[]> {
    return this.#all('/v1/snapshots', { sandbox });
  }

  createSnapshot(sandbox: string, name: string | null): Promise<{ snapshot: Snapshot; timings: Timing[] }> {
    return this.#json('POST', '/v1/snapshots', { json: name ? { sandbox, name } : { sandbox } });
  }

  deleteSnapshot(id: string): Promise<Snapshot> {
    return this.#json('DELETE', `/v1/snapshots/${encodeURIComponent(id)}`);
  }

  templates(): Promise<Template[]> {
    return this.#all('/v1/templates', {});
  }

  buildTemplate(build: 'minimal' | 'base'): Promise<Operation> {
    return this.#json('POST', '/v1/templates', { query: { wait: 'false' }, json: { build } });
  }

  operation(id: string): Promise<Operation> {
    return this.#json('GET', `/v1/operations/${encodeURIComponent(id)}`);
  }

  // Streams

  /** The body of the event stream of all sandboxes. EventSource could not send the key. */
  async events(signal: AbortSignal): Promise<ReadableStream<Uint8Array>> {
    const answer = await this.#call('GET', '/v1/events', { signal, headers: { Accept: 'text/event-stream' } });
    if (!answer.body) throw new Failure('page', 'The event stream has no body.', null, null);
    return answer.body;
  }

  /** A browser's WebSocket has no headers: the key goes as a subprotocol. */
  socket(id: string, path: string, query: Query): WebSocket {
    const url = new URL(address(sandboxPath(id, path), query), location.href);
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    const socket = new WebSocket(url, ['wrenn.v1', `key.${this.#key}`]);
    socket.binaryType = 'arraybuffer';
    return socket;
  }

  // How it is sent

  async #all<T>(path: string, query: Query): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | undefined;
    for (let page = 0; page < PAGES_MAX; page += 1) {
      const answer: Page<T> = await this.#json('GET', path, { query: { ...query, limit: PAGE_ITEMS, cursor } });
      items.push(...answer.items);
      if (!answer.next_cursor) break;
      cursor = answer.next_cursor;
    }
    return items;
  }

  async #json<T>(method: string, path: string, call: Call = {}): Promise<T> {
    return (await this.#call(method, path, call)).json();
  }

  async #nothing(method: string, path: string, call: Call): Promise<void> {
    await this.#call(method, path, call);
  }

  async #call(method: string, path: string, call: Call): Promise<Response> {
    const headers: Record<string, string> = { 'X-API-Key': this.#key, ...call.headers };
    if (call.json !== undefined) headers['Content-Type'] = 'application/json';
    const answer = await fetch(address(path, call.query ?? {}), {
      method,
      headers,
      body: call.json === undefined ? null : JSON.stringify(call.json),
      signal: call.signal ?? null,
      cache: 'no-store',
      credentials: 'omit',
    });
    if (!answer.ok) throw Failure.fromAnswer(answer.status, await answer.text(), answer.headers);
    return answer;
  }
}

function sandboxPath(id: string, rest?: string): string {
  const path = `/v1/sandboxes/${encodeURIComponent(id)}`;
  return rest ? `${path}/${rest}` : path;
}

function address(path: string, query: Query): string {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined) fields.set(name, String(value));
  const text = fields.toString();
  return text ? `${path}?${text}` : path;
}
