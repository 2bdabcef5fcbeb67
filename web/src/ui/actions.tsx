// What changes a sandbox's state. What its state does not allow is shown, but not offered.

import { useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { OnTimeout, Sandbox } from '../api/types';
import { FORKS_MAX } from '../limits';
import { formatCount } from '../pure/format';
import { wholeNumber } from '../pure/numbers';
import { parsePairs } from '../pure/pairs';
import { allowed, STATE_LOOKS } from '../pure/states';
import { confirm } from '../state/dialogs';
import { useSession } from '../state/session';
import { Cancel, Dialog, Submit } from './dialog';
import { Button, Field } from './parts';
import { ProblemHere } from './problems';

export function Actions({ sandbox }: { sandbox: Sandbox }) {
  const session = useSession();
  const [open, setOpen] = useState<'fork' | 'timeout' | null>(null);
  const can = allowed(sandbox.state);
  const { id } = sandbox;

  const offer = (allowedNow: boolean) => ({
    enabled: allowedNow && session.mayWrite,
    title: !session.mayWrite ? 'This key may only read' : allowedNow ? undefined : `Not while it is ${STATE_LOOKS[sandbox.state].label}`,
  });

  const destroy = async () => {
    const sure = await confirm({
      title: 'Destroy this sandbox?',
      text: `${id} ends, and its disk and memory are deleted. Its snapshots stay.`,
      action: 'Destroy',
      dangerous: true,
    });
    if (sure) await session.ask({ what: 'Destroy', sandbox: id, act: (client) => client.destroy(id) });
  };

  return (
    <div class="actions" role="group" aria-label="Actions">
      <Button testid="action-pause" {...offer(can.pause)} onPress={() => session.ask({ what: 'Pause', sandbox: id, act: (client) => client.pause(id) })}>
        Pause
      </Button>
      <Button testid="action-resume" {...offer(can.resume)} onPress={() => session.ask({ what: 'Resume', sandbox: id, act: (client) => client.resume(id) })}>
        Resume
      </Button>
      <Button testid="action-fork" {...offer(can.capture)} onPress={() => setOpen('fork')}>
        Fork…
      </Button>
      <Button testid="action-timeout" {...offer(can.timeout)} onPress={() => setOpen('timeout')}>
        Timeout…
      </Button>
      {can.repair && (
        <Button
          testid="action-repair"
          kind="primary"
          {...offer(true)}
          onPress={() => session.ask({ what: 'Repair', sandbox: id, act: (client) => client.repair(id) })}
        >
          Repair
        </Button>
      )}
      <Button testid="action-destroy" kind="danger" {...offer(can.destroy)} onPress={destroy}>
        Destroy…
      </Button>
      {open === 'fork' && <ForkDialog sandbox={sandbox} onClose={() => setOpen(null)} />}
      {open === 'timeout' && <TimeoutDialog sandbox={sandbox} onClose={() => setOpen(null)} />}
    </div>
  );
}

interface SandboxDialogProps {
  sandbox: Sandbox;
  onClose: () => void;
}

function ForkDialog({ sandbox, onClose }: SandboxDialogProps) {
  const session = useSession();
  const [count, setCount] = useState('1');
  const [labels, setLabels] = useState('');
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const typed = wholeNumber(count, 1, FORKS_MAX);
  const parsed = parsePairs(labels);

  const submit = async () => {
    if ('error' in typed || 'error' in parsed) return;
    const metadata = Object.keys(parsed.pairs).length > 0 ? { metadata: parsed.pairs } : {};
    setBusy(true);
    const answer = await session.ask({
      what: 'Fork',
      sandbox: sandbox.id,
      act: (client) => client.fork(sandbox.id, { count: typed.number ?? 1, ...metadata }),
      failed: setFailure,
    });
    setBusy(false);
    if (!answer) return;
    for (const { error } of answer.forks) if (error) session.report(`A fork of ${sandbox.id}`, Failure.fromBody(error));
    session.notice.set(`${formatCount(answer.forks.filter((fork) => fork.sandbox).length, 'fork')} made`);
    onClose();
  };

  return (
    <Dialog
      title="Fork"
      testid="dialog"
      onClose={onClose}
      onSubmit={submit}
      footer={
        <>
          <Cancel onPress={onClose} />
          <Submit busy={busy}>{busy ? 'Forking…' : 'Fork'}</Submit>
        </>
      }
    >
      <p>Each fork goes on from where {sandbox.id} is now, with its memory and its disk, as a sandbox of its own.</p>
      <Field label="How many" problem={'error' in typed ? typed.error : null} hint={`1 to ${FORKS_MAX}.`}>
        {(control) => (
          <input {...control} data-testid="fork-count" inputMode="numeric" autocomplete="off" value={count} onInput={(event) => setCount(event.currentTarget.value)} />
        )}
      </Field>
      <Field label="Labels" problem={'error' in parsed ? parsed.error : null} hint="NAME=value, one a line. Empty: as the sandbox’s.">
        {(control) => (
          <textarea {...control} data-testid="fork-labels" class="mono" rows={2} spellcheck={false} value={labels} onInput={(event) => setLabels(event.currentTarget.value)} />
        )}
      </Field>
      <ProblemHere what="Fork" failure={failure} />
    </Dialog>
  );
}

function TimeoutDialog({ sandbox, onClose }: SandboxDialogProps) {
  const session = useSession();
  const left_s = sandbox.deadline_unix_ms === null ? '' : String(Math.max(1, Math.round((sandbox.deadline_unix_ms - Date.now()) / 1000)));
  const [seconds, setSeconds] = useState(left_s);
  const [then, setThen] = useState<OnTimeout>(sandbox.on_timeout);
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const typed = wholeNumber(seconds, 1);

  const submit = async () => {
    if ('error' in typed) return;
    setBusy(true);
    const answer = await session.ask({
      what: 'Timeout',
      sandbox: sandbox.id,
      act: (client) => client.timeout(sandbox.id, typed.number, then),
      failed: setFailure,
    });
    setBusy(false);
    if (answer) onClose();
  };

  return (
    <Dialog
      title="When it ends"
      testid="dialog"
      onClose={onClose}
      onSubmit={submit}
      footer={
        <>
          <Cancel onPress={onClose} />
          <Submit busy={busy}>Set</Submit>
        </>
      }
    >
      <Field label="Seconds from now" problem={'error' in typed ? typed.error : null} hint="Empty: no end.">
        {(control) => (
          <input {...control} data-testid="timeout-seconds" inputMode="numeric" autocomplete="off" value={seconds} onInput={(event) => setSeconds(event.currentTarget.value)} />
        )}
      </Field>
      <Field label="When time is up">
        {(control) => (
          <select {...control} data-testid="timeout-then" value={then} onChange={(event) => setThen(event.currentTarget.value === 'pause' ? 'pause' : 'destroy')}>
            <option value="destroy">destroy it</option>
            <option value="pause">pause it</option>
          </select>
        )}
      </Field>
      <ProblemHere what="Timeout" failure={failure} />
    </Dialog>
  );
}
