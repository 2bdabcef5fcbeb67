// The binary frames of a command's output: one byte for the stream, eight for the place in the whole output, then bytes.

const HEADER_BYTES = 9;

export type OutputStream = 'stdout' | 'stderr' | 'terminal';

export interface OutputFrame {
  stream: OutputStream;
  /** Where these bytes begin in everything the command has written. */
  offset: number;
  bytes: Uint8Array;
}

const STREAMS: ReadonlyMap<number, OutputStream> = new Map([
  [1, 'stdout'],
  [2, 'stderr'],
  [3, 'terminal'],
]);

/** Throws if the frame is not one of ours. */
export function decodeFrame(buffer: ArrayBuffer): OutputFrame {
  if (buffer.byteLength < HEADER_BYTES) throw new Error(`an output frame of ${buffer.byteLength} bytes has no header`);
  const view = new DataView(buffer);
  const stream = STREAMS.get(view.getUint8(0));
  if (!stream) throw new Error(`an output frame names stream ${view.getUint8(0)}, which is none`);
  const offset = Number(view.getBigUint64(1));
  if (!Number.isSafeInteger(offset)) throw new Error('an output frame is further on than any output can be');
  return { stream, offset, bytes: new Uint8Array(buffer, HEADER_BYTES) };
}
