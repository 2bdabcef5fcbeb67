// Whole numbers as they are typed into a field.

export type Typed = { number: number | null } | { error: string };

/** An empty field is null: the server decides. */
export function wholeNumber(text: string, min: number, max = Number.MAX_SAFE_INTEGER): Typed {
  const trimmed = text.trim();
  if (trimmed === '') return { number: null };
  const number = Number(trimmed);
  if (!/^\d+$/.test(trimmed) || number < min) return { error: `a whole number from ${min} is needed` };
  return number > max ? { error: `at most ${max}` } : { number };
}
