// A command line, split into words as a shell would: quotes and backslashes, but no variables, globs or pipes.
// What would need a shell is pointed out, so that nobody wonders why `a | b` prints a bar.

export type Split = { words: string[]; needsShell: string | null } | { error: string };

const SHELL_ONLY = new Set(['|', '&', ';', '<', '>', '$', '`', '*', '?', '(', ')']);

export function splitWords(line: string): Split {
  const words: string[] = [];
  let word: string | null = null; // null between words; '' is a word too, as in `''`
  let needsShell: string | null = null;
  let at = 0;
  while (at < line.length) {
    const char = line.charAt(at);
    if (/\s/.test(char)) {
      if (word !== null) words.push(word);
      word = null;
      at += 1;
    } else if (char === "'" || char === '"') {
      const quoted = char === "'" ? singleQuoted(line, at) : doubleQuoted(line, at);
      if (!quoted) return { error: `the quote ${char} at position ${at + 1} is not closed` };
      word = (word ?? '') + quoted.text;
      at = quoted.end;
    } else if (char === '\\') {
      if (at + 1 >= line.length) return { error: 'the line ends in a backslash' };
      word = (word ?? '') + line.charAt(at + 1);
      at += 2;
    } else {
      if (SHELL_ONLY.has(char)) needsShell ??= char;
      word = (word ?? '') + char;
      at += 1;
    }
  }
  if (word !== null) words.push(word);
  return words.length > 0 ? { words, needsShell } : { error: 'there is no command' };
}

interface Quoted {
  text: string;
  end: number;
}

function singleQuoted(line: string, start: number): Quoted | null {
  const close = line.indexOf("'", start + 1);
  return close < 0 ? null : { text: line.slice(start + 1, close), end: close + 1 };
}

/** Within double quotes a backslash protects only what would mean something there. */
function doubleQuoted(line: string, start: number): Quoted | null {
  let text = '';
  for (let at = start + 1; at < line.length; at += 1) {
    const char = line.charAt(at);
    if (char === '"') return { text, end: at + 1 };
    const next = line.charAt(at + 1);
    if (char === '\\' && ['"', '\\', '$', '`'].includes(next)) {
      text += next;
      at += 1;
    } else {
      text += char;
    }
  }
  return null;
}

/** A command as one line that `splitWords` would take apart again; for showing. */
export function joinWords(words: readonly string[]): string {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(' ');
}
