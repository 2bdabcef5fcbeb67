// What stands behind the `#` of the address: a key that somebody hands over, the sandbox and the tab that are open.

export interface Fragment {
  key: string | null;
  sandbox: string | null;
  tab: string | null;
}

export function parseFragment(hash: string): Fragment {
  const fields = new URLSearchParams(hash.replace(/^#/, ''));
  return { key: fields.get('key'), sandbox: fields.get('sandbox'), tab: fields.get('tab') };
}

/** Never holds the key: an address is copied, bookmarked and sent around. */
export function formatFragment(sandbox: string | null, tab: string | null): string {
  const fields = new URLSearchParams();
  if (sandbox) fields.set('sandbox', sandbox);
  if (sandbox && tab) fields.set('tab', tab);
  const text = fields.toString();
  return text ? `#${text}` : '';
}

/** Why this cannot be a key of ours, or null. */
export function keyProblem(key: string): string | null {
  return /^wrn_[0-9a-f]{40}$/.test(key) ? null : 'A key is wrn_ and 40 characters of 0-9 and a-f.';
}
