import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Sample } from '../src/api/types';
import { gauge, mergeSamples, rate } from '../src/pure/samples';
import { highest, latest, niceTop, sparkArea, sparkLine } from '../src/pure/spark';

function sample(unix_ms: number, cpu_percent: number | null, network_rx_bytes: number | null = 0): Sample {
  return { unix_ms, cpu_percent, memory_bytes: 0, disk_own_bytes: 0, disk_shared_bytes: 0, network_rx_bytes, network_tx_bytes: 0, guest: null };
}

test('samples are merged in order, once each, and the old ones go', () => {
  const merged = mergeSamples([sample(1, 1), sample(2, 2), sample(3, 3)], [sample(3, 30), sample(5, 5), sample(4, 4)], 2);
  assert.deepEqual(merged.map(({ unix_ms, cpu_percent }) => [unix_ms, cpu_percent]), [[2, 2], [3, 30], [4, 4], [5, 5]]);
});

test('a counter gives a rate, and a gap where it cannot', () => {
  const points = rate([sample(0, 0, 0), sample(5000, 0, 1000), sample(10_000, 0, 400), sample(15_000, 0, null), sample(20_000, 0, 10)], (one) => one.network_rx_bytes);
  assert.deepEqual(points.map(({ value }) => value), [200, null, null, null]);
});

test('a line has gaps where values are not known', () => {
  const points = gauge([sample(0, 0), sample(10, 50), sample(20, null), sample(30, 100)], (one) => one.cpu_percent);
  const frame = { from_unix_ms: 0, to_unix_ms: 30, top: 100, width: 300, height: 60 };
  assert.equal(sparkLine(points, frame), 'M0 60L100 30M300 0');
  assert.equal(sparkArea(points, frame), 'M0 60L100 30L100 60L0 60ZM300 0L300 60L300 60Z');
  assert.equal(highest(points), 100);
  assert.equal(latest(points), 100);
  assert.equal(sparkLine([], frame), '');
  assert.equal(highest([]), null);
});

test('the upper edge is a round number not below the highest', () => {
  assert.equal(niceTop(0, 10), 1);
  assert.equal(niceTop(100, 10), 100);
  assert.equal(niceTop(130, 10), 200);
  assert.equal(niceTop(3 * 1024 * 1024, 1024), 4 * 1024 * 1024);
  for (const value of [0.3, 1, 7, 99, 1023, 1025, 123_456_789]) for (const base of [10, 1024] as const) assert.ok(niceTop(value, base) >= value);
});
