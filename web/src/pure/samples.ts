// Metrics as they are asked for: samples merged without doubles, and counters turned into rates.

import type { Sample } from '../api/types';
import type { Point } from './spark';

/** Old and new samples in order of time, each time once, none older than `since_unix_ms`. */
export function mergeSamples(old: readonly Sample[], fresh: readonly Sample[], since_unix_ms: number): Sample[] {
  const byTime = new Map([...old, ...fresh].map((sample) => [sample.unix_ms, sample]));
  return [...byTime.values()].filter((sample) => sample.unix_ms >= since_unix_ms).sort((a, b) => a.unix_ms - b.unix_ms);
}

export function gauge(samples: readonly Sample[], pick: (sample: Sample) => number | null): Point[] {
  return samples.map((sample) => ({ unix_ms: sample.unix_ms, value: pick(sample) }));
}

/** Units per second of something that only counts up. A counter that went back (another VM) gives a gap, not a negative rate. */
export function rate(samples: readonly Sample[], pick: (sample: Sample) => number | null): Point[] {
  return samples.slice(1).map((sample, index) => {
    const before = samples[index];
    const from = before ? pick(before) : null;
    const to = pick(sample);
    const known = before && from !== null && to !== null && to >= from && sample.unix_ms > before.unix_ms;
    return { unix_ms: sample.unix_ms, value: known ? ((to - from) * 1000) / (sample.unix_ms - before.unix_ms) : null };
  });
}
