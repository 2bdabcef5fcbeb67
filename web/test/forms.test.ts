import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CREATE_FORM_DEFAULT, createRequest } from '../src/pure/create_form';
import { formatFragment, keyProblem, parseFragment } from '../src/pure/fragment';
import { wholeNumber } from '../src/pure/numbers';
import { parsePairs } from '../src/pure/pairs';

test('pairs, one a line', () => {
  const parsed = parsePairs(' a = 1 \n\nb=c=d\nempty=\n');
  assert.ok('pairs' in parsed);
  assert.deepEqual({ ...parsed.pairs }, { a: '1', b: 'c=d', empty: '' });
  assert.deepEqual(parsePairs('a=1\nb'), { error: 'line 2 is not NAME=value' });
  assert.deepEqual(parsePairs('=1'), { error: 'line 1 is not NAME=value' });
  assert.deepEqual(parsePairs('a=1\na=2'), { error: 'line 2 names a again' });
  const odd = parsePairs('__proto__=x');
  assert.ok('pairs' in odd);
  assert.equal(JSON.stringify(odd.pairs), '{"__proto__":"x"}');
});

test('whole numbers', () => {
  assert.deepEqual(wholeNumber('', 1), { number: null });
  assert.deepEqual(wholeNumber(' 64 ', 1, 64), { number: 64 });
  for (const text of ['0', '-1', '1.5', '1e3', 'many', '65']) assert.ok('error' in wholeNumber(text, 1, 64), text);
});

test('a filled form is a request', () => {
  const made = createRequest({ ...CREATE_FORM_DEFAULT, template: 'minimal', timeout_s: '', labels: 'a=b', cold: true });
  assert.ok('request' in made);
  const plain = JSON.parse(JSON.stringify(made.request));
  assert.deepEqual(plain, {
    template: 'minimal',
    vcpus: 1,
    memory_mib: 256,
    timeout_s: null,
    on_timeout: 'destroy',
    auto_resume: false,
    cold: true,
    metadata: { a: 'b' },
    env: {},
  });
});

test('a snapshot brings its own size', () => {
  const made = createRequest({ ...CREATE_FORM_DEFAULT, source: 'snapshot', snapshot: 'sn1', vcpus: 'nonsense', cold: true });
  assert.ok('request' in made);
  for (const field of ['template', 'vcpus', 'memory_mib', 'disk_mib', 'cold']) assert.ok(!(field in made.request), field);
});

test('each field that is wrong is named', () => {
  const made = createRequest({ ...CREATE_FORM_DEFAULT, vcpus: 'x', timeout_s: '0', labels: 'a', env: 'b' });
  assert.ok('problems' in made);
  assert.deepEqual(Object.keys(made.problems).sort(), ['env', 'labels', 'template', 'timeout_s', 'vcpus']);
});

test('the address holds a place, and a key only on the way in', () => {
  assert.deepEqual(parseFragment('#key=wrn_1&sandbox=sb1&tab=files'), { key: 'wrn_1', sandbox: 'sb1', tab: 'files' });
  assert.deepEqual(parseFragment(''), { key: null, sandbox: null, tab: null });
  assert.equal(formatFragment('sb1', 'files'), '#sandbox=sb1&tab=files');
  assert.equal(formatFragment(null, 'files'), '');
});

test('what cannot be a key is said before it is sent', () => {
  assert.equal(keyProblem(`wrn_${'0a'.repeat(20)}`), null);
  for (const key of ['', 'wrn_', `wrn_${'0A'.repeat(20)}`, `wrn_${'0'.repeat(41)}`]) assert.notEqual(keyProblem(key), null, key);
});
