// A value that components watch. One owner writes it; everybody else reads.

import { useEffect, useState } from 'preact/hooks';

export class Store<T> {
  #value: T;
  readonly #watchers = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get(): T {
    return this.#value;
  }

  set(value: T): void {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const tell of [...this.#watchers]) tell();
  }

  update(change: (value: T) => T): void {
    this.set(change(this.#value));
  }

  watch(tell: () => void): () => void {
    this.#watchers.add(tell);
    return () => this.#watchers.delete(tell);
  }
}

export function useStore<T>(store: Store<T>): T {
  const [, redraw] = useState({});
  useEffect(() => {
    redraw({}); // it may have changed between the drawing and this
    return store.watch(() => redraw({}));
  }, [store]);
  return store.get();
}
