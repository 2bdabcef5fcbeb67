// A command or a terminal in a sandbox, over one WebSocket.
//
//   opening ─► started ─► ended (exit) │ failed (the server said why) │ lost (the connection broke; `attach` goes on from `offset`)
//
// Knows nothing of the page: whoever opens it gives handlers, of which exactly one of the three ends is called, once.

import { decodeFrame, type OutputStream } from '../pure/frames';
import type { Client } from './client';
import { Failure } from './failure';
import type { ErrorBody, ExecRequest, Exit } from './types';

export type Start =
  | { kind: 'exec'; request: ExecRequest }
  | { kind: 'pty'; cols: number; rows: number }
  | { kind: 'attach'; pid: number; offset: number };

export interface StreamHandlers {
  started(pid: number): void;
  output(stream: OutputStream, bytes: Uint8Array): void;
  /** So many bytes of output are kept by nobody any more. */
  gap(bytes: number): void;
  ended(exit: Exit): void;
  failed(failure: Failure): void;
  lost(failure: Failure): void;
}

type ServerMessage =
  | { type: 'started'; pid: number }
  | { type: 'gap'; bytes: number }
  | { type: 'exit'; exit: Exit }
  | { type: 'error'; error: ErrorBody };

export class CommandStream {
  readonly #client: Client;
  readonly #sandbox: string;
  readonly #handlers: StreamHandlers;
  readonly #socket: WebSocket;
  #pid: number | null = null;
  #offset = 0;
  #over = false;

  constructor(client: Client, sandbox: string, start: Start, handlers: StreamHandlers) {
    this.#client = client;
    this.#sandbox = sandbox;
    this.#handlers = handlers;
    this.#socket = open(client, sandbox, start);
    if (start.kind === 'attach') {
      this.#pid = start.pid;
      this.#offset = start.offset;
    }
    this.#socket.onopen = () => {
      if (start.kind === 'exec') this.#socket.send(JSON.stringify(start.request));
    };
    this.#socket.onmessage = (event) => this.#take(event.data);
    this.#socket.onclose = (event) => void this.#closed(event);
  }

  /** From where another connection goes on; null before the server has named the process. */
  get place(): { pid: number; offset: number } | null {
    return this.#pid === null ? null : { pid: this.#pid, offset: this.#offset };
  }

  input(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  closeInput(): void {
    this.#say({ type: 'close_stdin' });
  }

  signal(signal: number): void {
    this.#say({ type: 'signal', signal });
  }

  resize(cols: number, rows: number): void {
    this.#say({ type: 'resize', cols, rows });
  }

  /** Leaves; the command goes on, or not, as the server decides. No handler is called any more. */
  leave(): void {
    this.#over = true;
    this.#socket.close(1000);
  }

  #say(message: object): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #take(data: ArrayBuffer | string): void {
    if (this.#over) return;
    try {
      if (typeof data === 'string') this.#heed(JSON.parse(data));
      else this.#output(data);
    } catch (thrown) {
      this.#finish(() => this.#handlers.failed(Failure.from(thrown)));
      this.#socket.close(4000);
    }
  }

  #output(data: ArrayBuffer): void {
    const frame = decodeFrame(data);
    this.#offset = frame.offset + frame.bytes.length;
    this.#handlers.output(frame.stream, frame.bytes);
  }

  #heed(message: ServerMessage): void {
    switch (message.type) {
      case 'started':
        this.#pid = message.pid;
        return this.#handlers.started(message.pid);
      case 'gap':
        return this.#handlers.gap(message.bytes);
      case 'exit':
        return this.#finish(() => this.#handlers.ended(message.exit));
      case 'error':
        return this.#finish(() => this.#handlers.failed(Failure.fromBody(message.error)));
      default: // a later server may have more to say
    }
  }

  /** A browser hides why a WebSocket was refused, so the sandbox is asked how it is. */
  async #closed(event: CloseEvent): Promise<void> {
    if (this.#over) return;
    const why = await this.#explain(event);
    this.#finish(() => this.#handlers.lost(why));
  }

  async #explain(event: CloseEvent): Promise<Failure> {
    try {
      const { state } = await this.#client.sandbox(this.#sandbox);
      const reason = event.reason ? `: ${event.reason}` : '';
      const remedy = state === 'running' ? 'Connect again; the command goes on in the sandbox.' : `The sandbox is ${state}; it has to run for this.`;
      return new Failure(`ws_${event.code}`, `The connection ended before the command did${reason}.`, remedy, null);
    } catch (thrown) {
      return Failure.from(thrown);
    }
  }

  #finish(tell: () => void): void {
    if (this.#over) return;
    this.#over = true;
    tell();
  }
}

function open(client: Client, sandbox: string, start: Start): WebSocket {
  switch (start.kind) {
    case 'exec':
      return client.socket(sandbox, 'exec/stream', {});
    case 'pty':
      return client.socket(sandbox, 'pty', { cols: start.cols, rows: start.rows });
    case 'attach':
      return client.socket(sandbox, `exec/${start.pid}/stream`, { offset: start.offset });
  }
}
