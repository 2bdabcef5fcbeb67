// The small parts that everything else is made of: buttons, fields, badges, notes.

import type { ComponentChildren, JSX } from 'preact';
import { useId, useState } from 'preact/hooks';
import type { SandboxState } from '../api/types';
import { STATE_LOOKS } from '../pure/states';

interface ButtonProps {
  testid: string;
  /** May return a promise: until it ends the button is busy and does nothing more. */
  onPress: () => unknown;
  children: ComponentChildren;
  kind?: 'primary' | 'plain' | 'danger' | 'quiet';
  enabled?: boolean;
  /** Why it is not enabled, or what it does. */
  title?: string | undefined;
  label?: string;
}

/** Is `aria-disabled` rather than `disabled`, so that the keyboard's place is not lost when a state changes. */
export function Button({ testid, onPress, children, kind = 'plain', enabled = true, title, label }: ButtonProps) {
  const [busy, setBusy] = useState(false);
  const press = async () => {
    if (!enabled || busy) return;
    setBusy(true);
    try {
      await onPress();
    } finally {
      setBusy(false);
    }
  };
  return (
    <button
      type="button"
      class={`button ${kind}`}
      data-testid={testid}
      aria-disabled={!enabled || busy}
      aria-busy={busy}
      aria-label={label}
      title={title}
      onClick={press}
    >
      {children}
    </button>
  );
}

interface FieldProps {
  label: string;
  hint?: string | undefined;
  problem?: string | null | undefined;
  class?: string;
  children: (control: { id: string; 'aria-describedby': string | undefined; 'aria-invalid': boolean }) => JSX.Element;
}

/** A control with its label above, and below it a hint or what is wrong. */
export function Field({ label, hint, problem, class: className = '', children }: FieldProps) {
  const id = useId();
  const below = problem ?? hint;
  return (
    <div class={`field ${className}`}>
      <label for={id}>{label}</label>
      {children({ id, 'aria-describedby': below ? `${id}-below` : undefined, 'aria-invalid': Boolean(problem) })}
      {below && (
        <p id={`${id}-below`} class={problem ? 'field-problem' : 'field-hint'}>
          {problem ? `⚠ ${problem}` : hint}
        </p>
      )}
    </div>
  );
}

export function StateBadge({ state }: { state: SandboxState }) {
  const look = STATE_LOOKS[state] ?? { label: state, tone: 'rest', shape: 'M3 3h10v10H3z' };
  return (
    <span class={`badge tone-${look.tone}`} data-testid="state">
      <svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true">
        <path d={look.shape} fill-rule="evenodd" />
      </svg>
      {look.label}
    </span>
  );
}

/** For a panel that has nothing to show yet, and what one could do about it. */
export function Empty({ title, children, testid }: { title: string; children?: ComponentChildren; testid?: string }) {
  return (
    <div class="empty" data-testid={testid}>
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Labels({ metadata }: { metadata: Record<string, string> }) {
  const entries = Object.entries(metadata);
  if (entries.length === 0) return null;
  return (
    <span class="labels">
      {entries.map(([name, value]) => (
        <span class="label" key={name}>
          {name}
          <span class="label-equals">=</span>
          {value}
        </span>
      ))}
    </span>
  );
}
