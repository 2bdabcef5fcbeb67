import assert from 'node:assert/strict';
import { test } from 'node:test';
import { joinWords, splitWords } from '../src/pure/words';

function words(line: string): string[] {
  const split = splitWords(line);
  assert.ok('words' in split, `${line}: ${'error' in split ? split.error : ''}`);
  return split.words;
}

test('words as a shell would split them', () => {
  const table: [string, string[]][] = [
    ['uname -a', ['uname', '-a']],
    ['  a\t b  ', ['a', 'b']],
    [`echo 'a b' "c d"`, ['echo', 'a b', 'c d']],
    [`a'b'"c"d`, ['abcd']],
    [`echo '' ""`, ['echo', '', '']],
    [String.raw`echo a\ b \"`, ['echo', 'a b', '"']],
    [String.raw`echo "a\"b\\c\n"`, ['echo', String.raw`a"b\c\n`]],
    [String.raw`echo 'a\b'`, ['echo', String.raw`a\b`]],
    [`sh -c "echo hi; exit 3"`, ['sh', '-c', 'echo hi; exit 3']],
  ];
  for (const [line, expected] of table) assert.deepEqual(words(line), expected, line);
});

test('what is not finished is said', () => {
  for (const [line, error] of [[`echo 'a`, /not closed/], [`echo "a`, /position 6/], ['echo \\', /backslash/], ['', /no command/], ['  ', /no command/]] as const) {
    const split = splitWords(line);
    assert.ok('error' in split, line);
    assert.match(split.error, error);
  }
});

test('what only a shell understands is pointed out, unless it is quoted', () => {
  const table: [string, string | null][] = [
    ['ls | head', '|'],
    ['echo $HOME', '$'],
    ["echo '$HOME'", null],
    ['ls *.txt', '*'],
    [String.raw`echo \*`, null],
  ];
  for (const [line, expected] of table) {
    const split = splitWords(line);
    assert.ok('words' in split);
    assert.equal(split.needsShell, expected, line);
  }
});

test('joined words split into the same again', () => {
  for (const list of [['ls', '-l'], ['echo', '', 'a b', `it's`, '"', '\\', '$x', 'a\nb']]) assert.deepEqual(words(joinWords(list)), list);
});
