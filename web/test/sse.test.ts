import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SSE_MESSAGE_BYTES_MAX } from '../src/limits';
import { SseDecoder } from '../src/pure/sse';

const STREAM = ': hello\r\n\r\nevent: sandbox\r\ndata: {"id":"sb1"}\r\n\r\nevent: complete\ndata: {}\n\ndata: a\rdata: ü\r\r';
const MESSAGES = [
  { event: 'sandbox', data: '{"id":"sb1"}' },
  { event: 'complete', data: '{}' },
  { event: 'message', data: 'a\nü' },
];

test('a stream gives its messages, wherever it is cut', () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const decoder = new SseDecoder();
    const messages = [];
    for (let at = 0; at < STREAM.length; at += size) messages.push(...decoder.push(STREAM.slice(at, at + size)));
    assert.deepEqual(messages, MESSAGES, `in pieces of ${size}`);
  }
});

test('a comment, a name without data and unknown fields are no messages', () => {
  assert.deepEqual(new SseDecoder().push(': still here\n\nevent: sandbox\n\nid: 3\nretry: 5\n\n'), []);
});

test('what is not complete waits', () => {
  const decoder = new SseDecoder();
  assert.deepEqual(decoder.push('data: 1\n'), []);
  assert.deepEqual(decoder.push('\n'), [{ event: 'message', data: '1' }]);
});

test('a message that never ends is refused', () => {
  const decoder = new SseDecoder();
  const line = `data: ${'x'.repeat(1000)}\n`;
  assert.throws(() => {
    for (let sent = 0; sent < SSE_MESSAGE_BYTES_MAX * 2; sent += 1000) decoder.push(line);
  }, /larger/);
});
