// One clock for everything that shows what is left: ticks each second while somebody watches.

import { Store, useStore } from './store';

const now = new Store(Date.now());
setInterval(() => now.set(Date.now()), 1000);

export function useNow(): number {
  return useStore(now);
}
