// How long to wait before connecting again: twice as long each time, up to a bound, and never all pages at once.

import { RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN } from '../limits';

/** `failures` in a row, from 1; `chance` is from 0 to 1 and takes away up to a third. */
export function retryDelayMs(failures: number, chance: number): number {
  const full = Math.min(RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN * 2 ** Math.min(failures - 1, 16));
  return Math.round(full * (1 - chance / 3));
}
