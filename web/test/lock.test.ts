import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

// `npm test` runs in web/.
test('the lock names no host', () => {
  const lock = readFileSync('package-lock.json', 'utf8');
  assert.ok(!lock.includes('://'), 'an address is in package-lock.json; `npm run lock` makes it anew without');
  assert.ok(!lock.includes('"resolved"'));
});
