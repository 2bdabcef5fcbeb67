import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Failure } from '../src/api/failure';
import type { Sandbox, SandboxState } from '../src/api/types';
import { RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN } from '../src/limits';
import { retryDelayMs } from '../src/pure/backoff';
import { describeChange } from '../src/pure/changes';
import { appendOutput, NO_OUTPUT } from '../src/pure/output';
import { crumbs, joinPath, nameProblem, normalPath, parentPath } from '../src/pure/paths';
import { allowed, STATE_LOOKS } from '../src/pure/states';

function sandbox(change: Partial<Sandbox>): Sandbox {
  return { id: 'sb1', state: 'running', reason: null, revision: 1, deadline_unix_ms: null, on_timeout: 'destroy', auto_resume: false, ...change } as Sandbox;
}

test('no two states look alike, and only a destroyed one cannot be destroyed', () => {
  const looks = Object.values(STATE_LOOKS);
  assert.equal(new Set(looks.map(({ label }) => label)).size, looks.length);
  assert.equal(new Set(looks.map(({ shape }) => shape)).size, looks.length);
  for (const state of Object.keys(STATE_LOOKS) as SandboxState[]) assert.equal(allowed(state).destroy, state !== 'destroying');
});

test('what changed, in words', () => {
  assert.deepEqual(describeChange(undefined, sandbox({})), ['is here: running']);
  assert.deepEqual(describeChange(sandbox({}), sandbox({ revision: 2 })), []);
  assert.deepEqual(describeChange(sandbox({}), sandbox({ state: 'needs_repair', reason: 'busy' })), ['running → needs repair (busy)']);
  assert.deepEqual(describeChange(sandbox({}), sandbox({ on_timeout: 'pause', auto_resume: true })), ['at its end: pause', 'resumes by itself: yes']);
});

test('output is kept from the end, stream by stream', () => {
  let output = appendOutput(NO_OUTPUT, 'stdout', 'abc', 6);
  output = appendOutput(output, 'stdout', 'd', 6);
  output = appendOutput(output, 'stderr', 'EF', 6);
  assert.deepEqual(output.stretches, [{ voice: 'stdout', text: 'abcd' }, { voice: 'stderr', text: 'EF' }]);
  output = appendOutput(output, 'stdout', 'ghi', 6);
  assert.deepEqual(output.stretches, [{ voice: 'stdout', text: 'd' }, { voice: 'stderr', text: 'EF' }, { voice: 'stdout', text: 'ghi' }]);
  assert.equal(output.dropped, 3);
  assert.equal(appendOutput(output, 'stdout', 'x'.repeat(20), 6).stretches.length, 1);
});

test('paths in a guest', () => {
  assert.equal(joinPath('/', 'etc'), '/etc');
  assert.equal(joinPath('/var', 'log'), '/var/log');
  assert.equal(parentPath('/var/log'), '/var');
  assert.equal(parentPath('/var'), '/');
  assert.deepEqual(crumbs('/var/log').map(({ path }) => path), ['/', '/var', '/var/log']);
  assert.equal(normalPath(' var//log/ '), '/var/log');
  assert.equal(normalPath(''), '/');
  for (const name of ['', '.', '..', 'a/b']) assert.notEqual(nameProblem(name), null);
  assert.equal(nameProblem('.profile'), null);
});

test('waits grow to a bound and differ', () => {
  assert.equal(retryDelayMs(1, 0), RETRY_DELAY_MS_MIN);
  assert.equal(retryDelayMs(2, 0), RETRY_DELAY_MS_MIN * 2);
  assert.equal(retryDelayMs(1000, 0), RETRY_DELAY_MS_MAX);
  assert.ok(retryDelayMs(3, 1) < retryDelayMs(3, 0));
});

test('a refusal keeps what the server said, and its trace where it said nothing', () => {
  const headers = (names: Record<string, string>) => ({ get: (name: string) => names[name] ?? null });
  const told = Failure.fromAnswer(429, '{"error":{"code":"rate_limited","message":"too fast","remedy":null}}', headers({ 'X-Request-Id': 'rq1', 'Retry-After': '3' }));
  assert.deepEqual([told.code, told.message, told.remedy, told.requestId], ['rate_limited', 'too fast', 'Try again in 3 s.', 'rq1']);
  const mute = Failure.fromAnswer(502, '<html>', headers({}));
  assert.deepEqual([mute.code, mute.requestId], ['http_502', null]);
  assert.equal(Failure.from(new TypeError('Failed to fetch')).code, 'unreachable');
});
