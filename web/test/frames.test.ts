import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeFrame } from '../src/pure/frames';

function frame(stream: number, offset: bigint, text: string): ArrayBuffer {
  const bytes = new TextEncoder().encode(text);
  const buffer = new ArrayBuffer(9 + bytes.length);
  const view = new DataView(buffer);
  view.setUint8(0, stream);
  view.setBigUint64(1, offset);
  new Uint8Array(buffer, 9).set(bytes);
  return buffer;
}

test('stream, place and bytes', () => {
  for (const [number, stream] of [[1, 'stdout'], [2, 'stderr'], [3, 'terminal']] as const) {
    const decoded = decodeFrame(frame(number, 5_000_000_000n, 'hi'));
    assert.equal(decoded.stream, stream);
    assert.equal(decoded.offset, 5_000_000_000);
    assert.equal(new TextDecoder().decode(decoded.bytes), 'hi');
  }
});

test('a frame without bytes is a frame', () => {
  assert.equal(decodeFrame(frame(1, 0n, '')).bytes.length, 0);
});

test('what is no frame of ours is refused', () => {
  assert.throws(() => decodeFrame(new ArrayBuffer(8)), /no header/);
  assert.throws(() => decodeFrame(frame(4, 0n, 'x')), /stream 4/);
  assert.throws(() => decodeFrame(frame(1, 2n ** 60n, 'x')), /further/);
});
