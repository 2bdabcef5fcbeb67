// Server-sent events, decoded from pieces of text that may be cut anywhere.
// Knows the format alone: no network, no time, nothing of what the messages mean.

import { SSE_MESSAGE_BYTES_MAX } from '../limits';

export interface SseMessage {
  /** `message` where the stream does not name one. */
  event: string;
  data: string;
}

export class SseDecoder {
  #line = '';
  #afterCarriageReturn = false;
  #event = '';
  #data: string[] = [];
  #size = 0;

  /** Takes the next piece and returns the messages that it completes. Throws if one becomes too large. */
  push(piece: string): SseMessage[] {
    const messages: SseMessage[] = [];
    for (const line of this.#lines(piece)) {
      const message = this.#take(line);
      if (message) messages.push(message);
    }
    if (this.#size + this.#line.length > SSE_MESSAGE_BYTES_MAX) throw new Error('an event is larger than any of ours');
    return messages;
  }

  /** Lines end in LF, CR or CRLF; a CR at the end of a piece may be half of a CRLF. */
  *#lines(piece: string): Generator<string> {
    for (const char of piece) {
      const halfOfPrevious = char === '\n' && this.#afterCarriageReturn;
      this.#afterCarriageReturn = char === '\r';
      if (halfOfPrevious) continue;
      if (char === '\n' || char === '\r') {
        yield this.#line;
        this.#line = '';
      } else {
        this.#line += char;
      }
    }
  }

  #take(line: string): SseMessage | null {
    if (line === '') return this.#dispatch();
    const colon = line.indexOf(':');
    if (colon === 0) return null; // a comment: a sign of life, nothing more
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#event = value;
    if (field === 'data') {
      this.#data.push(value);
      this.#size += value.length;
    }
    return null; // `id`, `retry` and what we do not know
  }

  #dispatch(): SseMessage | null {
    const message = { event: this.#event || 'message', data: this.#data.join('\n') };
    const complete = this.#data.length > 0;
    this.#event = '';
    this.#data = [];
    this.#size = 0;
    return complete ? message : null;
  }
}
