// `NAME=value`, one a line: how labels and environment variables are entered.

export type Pairs = { pairs: Record<string, string> } | { error: string };

export function parsePairs(text: string): Pairs {
  // No prototype: a label may be called `__proto__`.
  const pairs: Record<string, string> = Object.create(null);
  for (const [index, raw] of text.split('\n').entries()) {
    const line = raw.trim();
    if (line === '') continue;
    const equals = line.indexOf('=');
    if (equals < 1) return { error: `line ${index + 1} is not NAME=value` };
    const name = line.slice(0, equals).trim();
    if (name in pairs) return { error: `line ${index + 1} names ${name} again` };
    pairs[name] = line.slice(equals + 1).trim();
  }
  return { pairs };
}
