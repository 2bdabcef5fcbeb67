// A command's output as it is shown: stretches of one stream each, bounded from the front.

import { OUTPUT_CHARS_MAX } from '../limits';

export type Voice = 'stdout' | 'stderr' | 'note';

export interface Stretch {
  voice: Voice;
  text: string;
}

export interface Output {
  stretches: readonly Stretch[];
  size: number;
  /** Characters that were let go at the front. */
  dropped: number;
}

export const NO_OUTPUT: Output = { stretches: [], size: 0, dropped: 0 };

export function appendOutput(output: Output, voice: Voice, text: string, max = OUTPUT_CHARS_MAX): Output {
  if (text === '') return output;
  const last = output.stretches[output.stretches.length - 1];
  const stretches =
    last?.voice === voice
      ? [...output.stretches.slice(0, -1), { voice, text: last.text + text }]
      : [...output.stretches, { voice, text }];
  return bounded({ stretches, size: output.size + text.length, dropped: output.dropped }, max);
}

function bounded(output: Output, max: number): Output {
  let excess = output.size - max;
  if (excess <= 0) return output;
  const stretches: Stretch[] = [];
  const dropped = output.dropped + excess;
  for (const stretch of output.stretches) {
    if (excess >= stretch.text.length) {
      excess -= stretch.text.length;
      continue;
    }
    stretches.push(excess > 0 ? { ...stretch, text: stretch.text.slice(excess) } : stretch);
    excess = 0;
  }
  return { stretches, size: max, dropped };
}
