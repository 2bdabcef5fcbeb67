// The live list: reads /v1/events, starts again with growing pauses when it ends, and says how it stands.
//
//   connecting ─► live ─► waiting ─► connecting …        refused: the key does not count any more; nobody tries again
//
// A connection that is silent for longer than the server's comments allow counts as lost.

import { SSE_SILENCE_MS_MAX } from '../limits';
import { retryDelayMs } from '../pure/backoff';
import { SseDecoder, type SseMessage } from '../pure/sse';
import type { Client } from './client';
import { Failure } from './failure';
import type { ErrorBody, Gone, Sandbox } from './types';

export type Connection =
  | { kind: 'connecting' }
  | { kind: 'live' }
  | { kind: 'waiting'; until_unix_ms: number; why: Failure }
  | { kind: 'refused'; why: Failure };

export interface EventHandlers {
  sandbox(sandbox: Sandbox): void;
  gone(gone: Gone): void;
  /** All sandboxes that are there have been named since the stream began; what was not among them is no more. */
  complete(present: ReadonlySet<string>): void;
  connection(connection: Connection): void;
}

export class EventFeed {
  readonly #client: Client;
  readonly #handlers: EventHandlers;
  #failures = 0;
  #ended = false;
  #abort = new AbortController();
  #wake: (() => void) | null = null;

  constructor(client: Client, handlers: EventHandlers) {
    this.#client = client;
    this.#handlers = handlers;
  }

  /** Returns only after `end`, or when the key is refused. */
  async run(): Promise<void> {
    while (!this.#ended) {
      this.#handlers.connection({ kind: 'connecting' });
      const why = await this.#once();
      if (this.#ended) return;
      if (why.code === 'unauthenticated' || why.code === 'forbidden') return this.#handlers.connection({ kind: 'refused', why });
      this.#failures += 1;
      await this.#wait(why);
    }
  }

  /** Does not wait any longer: the network is back, or somebody pressed the button. */
  retryNow(): void {
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#abort.abort();
    this.#wake?.();
  }

  /** One connection from beginning to end; returns why it ended. */
  async #once(): Promise<Failure> {
    this.#abort = new AbortController();
    const silence = new Silence(() => this.#abort.abort());
    try {
      const body = await this.#client.events(this.#abort.signal);
      await this.#read(body, silence);
      return new Failure('ended', 'The server ended the event stream.', null, null);
    } catch (thrown) {
      return silence.over ? new Failure('silent', 'Nothing came from the server for too long.', null, null) : Failure.from(thrown);
    } finally {
      silence.stop();
      this.#abort.abort();
    }
  }

  async #read(body: ReadableStream<Uint8Array>, silence: Silence): Promise<void> {
    const reader = body.getReader();
    const text = new TextDecoder();
    const decoder = new SseDecoder();
    const present = new Set<string>();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      silence.heard();
      for (const message of decoder.push(text.decode(value, { stream: true }))) this.#take(message, present);
    }
  }

  #take(message: SseMessage, present: Set<string>): void {
    const data: unknown = JSON.parse(message.data);
    switch (message.event) {
      case 'sandbox': {
        const sandbox = data as Sandbox;
        present.add(sandbox.id);
        return this.#handlers.sandbox(sandbox);
      }
      case 'gone': {
        const gone = data as Gone;
        present.delete(gone.id);
        return this.#handlers.gone(gone);
      }
      case 'complete':
        this.#failures = 0;
        this.#handlers.complete(present);
        return this.#handlers.connection({ kind: 'live' });
      case 'error':
        throw Failure.fromBody(data as ErrorBody);
      default: // a later server may have more to say
    }
  }

  async #wait(why: Failure): Promise<void> {
    const delay_ms = retryDelayMs(this.#failures, Math.random());
    this.#handlers.connection({ kind: 'waiting', until_unix_ms: Date.now() + delay_ms, why });
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, delay_ms);
    });
    this.#wake = null;
  }
}

/** Calls once when nothing was heard for too long. */
class Silence {
  over = false;
  readonly #tell: () => void;
  #timer: ReturnType<typeof setTimeout>;

  constructor(tell: () => void) {
    this.#tell = tell;
    this.#timer = this.#start();
  }

  heard(): void {
    clearTimeout(this.#timer);
    this.#timer = this.#start();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #start(): ReturnType<typeof setTimeout> {
    return setTimeout(() => {
      this.over = true;
      this.#tell();
    }, SSE_SILENCE_MS_MAX);
  }
}
