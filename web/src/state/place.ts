// Which sandbox and which tab are open. Kept in the address, so that a reload and the back button do what one expects.

import { formatFragment, parseFragment } from '../pure/fragment';
import { Store } from './store';

export interface Place {
  sandbox: string | null;
  tab: string | null;
}

export const place = new Store<Place>(fromAddress());

window.addEventListener('hashchange', () => place.set(fromAddress()));
window.addEventListener('popstate', () => place.set(fromAddress()));

export function openSandbox(sandbox: string | null): void {
  const tab = place.get().tab;
  if (place.get().sandbox === sandbox) return;
  history.pushState(null, '', address(sandbox, tab));
  place.set({ sandbox, tab });
}

export function openTab(tab: string): void {
  const { sandbox } = place.get();
  history.replaceState(null, '', address(sandbox, tab));
  place.set({ sandbox, tab });
}

/** A key in the address is taken out of it before anything else happens, and returned. */
export function takeKeyFromAddress(): string | null {
  const { key, sandbox, tab } = parseFragment(location.hash);
  if (key !== null) history.replaceState(null, '', address(sandbox, tab));
  return key;
}

function fromAddress(): Place {
  const { sandbox, tab } = parseFragment(location.hash);
  return { sandbox, tab };
}

function address(sandbox: string | null, tab: string | null): string {
  return location.pathname + location.search + formatFragment(sandbox, tab);
}
