import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bytesToText, formatBytes, formatDuration, formatExit, formatMib, formatMs, formatTimeLeft, formatVmm } from '../src/pure/format';

test('bytes', () => {
  const table: [number, string][] = [[0, '0 B'], [1023, '1023 B'], [1024, '1 KiB'], [1536, '1.5 KiB'], [5_368_709_120, '5 GiB'], [200 * 1024, '200 KiB']];
  for (const [bytes, text] of table) assert.equal(formatBytes(bytes), text);
  assert.equal(formatMib(256), '256 MiB');
  assert.equal(formatMib(2048), '2 GiB');
});

test('milliseconds', () => {
  const table: [number, string][] = [[0.0123, '12 µs'], [0.85, '850 µs'], [1, '1 ms'], [12.34, '12.3 ms'], [123.4, '123 ms'], [1420, '1.42 s'], [75_000, '1 min 15 s']];
  for (const [ms, text] of table) assert.equal(formatMs(ms), text);
});

test('durations have two units at most', () => {
  const table: [number, string][] = [[-3, '0 s'], [59, '59 s'], [60, '1 min'], [200, '3 min 20 s'], [3600, '1 h'], [7_500, '2 h 5 min'], [100_000, '1 d 3 h']];
  for (const [seconds, text] of table) assert.equal(formatDuration(seconds), text);
});

test('what is left', () => {
  assert.equal(formatTimeLeft(null, 0), 'no end');
  assert.equal(formatTimeLeft(90_000, 0), '1 min 30 s left');
  assert.equal(formatTimeLeft(90_000, 90_000), 'time is up');
});

test('each end of a command in words', () => {
  assert.equal(formatExit({ kind: 'exited', code: 3 }), 'exited with 3');
  assert.equal(formatExit({ kind: 'signalled', signal: 9 }), 'ended by signal 9 (SIGKILL)');
  assert.equal(formatExit({ kind: 'signalled', signal: 40 }), 'ended by signal 40');
  assert.equal(formatExit({ kind: 'timed_out' }), 'ended: its time was up');
  assert.equal(formatExit({ kind: 'unknown' }), 'ended, nobody saw how');
});

test('the driver, told whole or by its name', () => {
  assert.equal(formatVmm({ driver: 'firecracker', version: '1.12.0', accel: 'kvm' }), 'firecracker 1.12.0 · kvm');
  assert.equal(formatVmm('qemu'), 'qemu');
});

test('bytes that are no text do not break the page', () => {
  assert.equal(bytesToText({ encoding: 'utf8', data: 'ü', truncated: false }), 'ü');
  assert.equal(bytesToText({ encoding: 'base64', data: 'w7w=', truncated: false }), 'ü');
  assert.equal(bytesToText({ encoding: 'base64', data: '/w==', truncated: false }), '\ufffd');
});
