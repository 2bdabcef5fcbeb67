// Questions to the person: asked from anywhere, answered in a real <dialog>, one after the other.

import { Store } from './store';

export interface Question {
  title: string;
  text: string;
  /** What the button says that goes ahead: a verb. */
  action: string;
  dangerous?: boolean;
  /** Asks for a line of text as well. */
  input?: { label: string; value: string; problem: (value: string) => string | null };
}

export interface Pending {
  question: Question;
  /** null: no. Otherwise the entered line, or the empty string where none was asked for. */
  answer: (text: string | null) => void;
}

export const pending = new Store<readonly Pending[]>([]);

export async function confirm(question: Question): Promise<boolean> {
  return (await askFor(question)) !== null;
}

export function askFor(question: Question): Promise<string | null> {
  return new Promise((resolve) => {
    const entry: Pending = {
      question,
      answer: (text) => {
        pending.update((all) => all.filter((other) => other !== entry));
        resolve(text);
      },
    };
    pending.update((all) => [...all, entry]);
  });
}
