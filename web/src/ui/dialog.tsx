// Modal dialogs on the browser's own <dialog>: it keeps the focus inside, gives it back, and Escape means no.

import type { ComponentChildren } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { type Pending, pending } from '../state/dialogs';
import { useStore } from '../state/store';
import { Button, Field } from './parts';

interface DialogProps {
  title: string;
  testid: string;
  wide?: boolean;
  onClose: () => void;
  onSubmit: () => unknown;
  children: ComponentChildren;
  footer: ComponentChildren;
}

/** A form in a dialog; Enter in a field submits it. */
export function Dialog({ title, testid, wide = false, onClose, onSubmit, children, footer }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const heading = useId();
  useEffect(() => {
    const opener = document.activeElement;
    ref.current?.showModal();
    // An element that is taken out of the page gives no focus back by itself.
    return () => {
      if (opener instanceof HTMLElement && opener.isConnected) opener.focus();
    };
  }, []);
  return (
    <dialog
      ref={ref}
      class={wide ? 'dialog wide' : 'dialog'}
      data-testid={testid}
      aria-labelledby={heading}
      onCancel={(event) => {
        if (event.target !== ref.current) return; // of a file chooser within
        event.preventDefault();
        onClose();
      }}
    >
      <form
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          void onSubmit();
          // What the check has found is marked by then.
          requestAnimationFrame(() => ref.current?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus());
        }}
      >
        <h2 id={heading}>{title}</h2>
        <div class="dialog-body">{children}</div>
        <footer class="dialog-footer">{footer}</footer>
      </form>
    </dialog>
  );
}

export function Cancel({ onPress, children = 'Cancel' }: { onPress: () => void; children?: ComponentChildren }) {
  return (
    <Button testid="dialog-cancel" onPress={onPress}>
      {children}
    </Button>
  );
}

interface SubmitProps {
  testid?: string;
  kind?: 'primary' | 'danger';
  busy?: boolean;
  enabled?: boolean;
  children: ComponentChildren;
}

export function Submit({ testid = 'dialog-confirm', kind = 'primary', busy = false, enabled = true, children }: SubmitProps) {
  return (
    <button type="submit" class={`button ${kind}`} data-testid={testid} aria-busy={busy} disabled={busy || !enabled}>
      {children}
    </button>
  );
}

/** Shows the questions of `state/dialogs`. */
export function Questions() {
  const [first] = useStore(pending);
  return first ? <QuestionDialog key={first.question} entry={first} /> : null;
}

function QuestionDialog({ entry }: { entry: Pending }) {
  const { question, answer } = entry;
  const { input } = question;
  const [text, setText] = useState(input?.value ?? '');
  const [tried, setTried] = useState(false);
  const problem = input ? input.problem(text) : null;
  const submit = () => {
    setTried(true);
    if (!problem) answer(text);
  };
  return (
    <Dialog
      title={question.title}
      testid="dialog"
      onClose={() => answer(null)}
      onSubmit={submit}
      footer={
        <>
          <Cancel onPress={() => answer(null)} />
          <Submit kind={question.dangerous ? 'danger' : 'primary'}>{question.action}</Submit>
        </>
      }
    >
      {question.text && <p>{question.text}</p>}
      {input && (
        <Field label={input.label} problem={tried ? problem : null}>
          {(control) => (
            <input
              {...control}
              data-testid="dialog-input"
              class="mono"
              autocomplete="off"
              spellcheck={false}
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
            />
          )}
        </Field>
      )}
    </Dialog>
  );
}
