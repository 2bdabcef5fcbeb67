// Takes out of package-lock.json what is of no use to `npm ci`: addresses at which packages ask for money.
// With omit-lockfile-registry-resolved (.npmrc) no host name is left in it; test/lock.test.ts sees to that.

import { readFileSync, writeFileSync } from 'node:fs';

const path = new URL('package-lock.json', import.meta.url);
const lock = JSON.parse(readFileSync(path, 'utf8'));
for (const entry of Object.values(lock.packages)) delete entry.funding;
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`);
