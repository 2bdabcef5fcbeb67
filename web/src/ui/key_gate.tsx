// Asks for the key. What it is good for is asked of the server; what is refused is said here.

import { useEffect, useRef, useState } from 'preact/hooks';
import type { Failure } from '../api/failure';
import { keyProblem } from '../pure/fragment';
import { Field } from './parts';
import { ProblemHere } from './problems';

interface KeyGateProps {
  /** True while a key is being tried. */
  trying: boolean;
  failure: Failure | null;
  onKey: (key: string) => void;
}

export function KeyGate({ trying, failure, onKey }: KeyGateProps) {
  const [key, setKey] = useState('');
  const [problem, setProblem] = useState<string | null>(null);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (!trying) input.current?.focus();
  }, [trying]);

  const submit = (event: Event) => {
    event.preventDefault();
    const wrong = keyProblem(key.trim());
    setProblem(wrong);
    if (!wrong) onKey(key.trim());
  };

  return (
    <main class="gate">
      <form class="gate-card" onSubmit={submit} noValidate>
        <img src="/assets/favicon.svg" alt="" width="40" height="40" />
        <h1>Wrenn</h1>
        <p class="muted">Sandboxes on this host: create one, look into it, throw it away.</p>
        <Field label="API key" problem={problem} hint="Kept in this tab alone, until it is closed or you forget it.">
          {(control) => (
            <input
              {...control}
              ref={input}
              data-testid="key-input"
              type="password"
              class="mono"
              autocomplete="off"
              spellcheck={false}
              placeholder="wrn_…"
              value={key}
              onInput={(event) => setKey(event.currentTarget.value)}
            />
          )}
        </Field>
        <button type="submit" class="button primary" data-testid="key-save" aria-busy={trying} disabled={trying}>
          {trying ? 'Asking the server…' : 'Continue'}
        </button>
        <ProblemHere what="Signing in" failure={failure} />
        <p class="gate-links">
          <a href="/docs">API documentation</a>
        </p>
      </form>
    </main>
  );
}
