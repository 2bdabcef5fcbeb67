// Snapshots: of this sandbox, or all that there are; made, rolled back to, made into another sandbox, deleted.

import { useEffect, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { Sandbox, Snapshot } from '../api/types';
import { formatBytes, formatClock, formatMib } from '../pure/format';
import { allowed, STATE_LOOKS } from '../pure/states';
import { useNow } from '../state/clock';
import { confirm } from '../state/dialogs';
import { openSandbox } from '../state/place';
import { useSession } from '../state/session';
import { Check, CreateButton } from './create';
import { Button, Empty, Field } from './parts';
import { ProblemHere } from './problems';

export function Snapshots({ sandbox, active }: { sandbox: Sandbox; active: boolean }) {
  const session = useSession();
  const [all, setAll] = useState(false);
  const [items, setItems] = useState<Snapshot[] | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);

  const load = async () => {
    try {
      const found = await session.client.snapshots(all ? undefined : sandbox.id);
      setItems(found.sort((a, b) => b.created_unix_ms - a.created_unix_ms));
      setFailure(null);
    } catch (thrown) {
      setFailure(Failure.from(thrown));
    }
  };
  useEffect(() => {
    if (active) void load();
  }, [active, all]);

  return (
    <div class="snapshots">
      <Take sandbox={sandbox} onTaken={load} />
      <div class="line">
        <Check testid="snapshot-all" checked={all} onChange={setAll}>
          Include those of other sandboxes
        </Check>
        <Button testid="snapshot-refresh" onPress={load}>
          Refresh
        </Button>
      </div>
      <ProblemHere what="Looking for snapshots" failure={failure} />
      {items?.length === 0 && <Empty title="No snapshot yet" />}
      <ul class="cards">
        {items?.map((snapshot) => (
          <Card key={snapshot.id} sandbox={sandbox} snapshot={snapshot} onChanged={load} />
        ))}
      </ul>
    </div>
  );
}

function Take({ sandbox, onTaken }: { sandbox: Sandbox; onTaken: () => Promise<void> }) {
  const session = useSession();
  const [name, setName] = useState('');
  const [busy, setBusy] = useState(false);
  const able = allowed(sandbox.state).capture && session.mayWrite;
  const take = async (event: Event) => {
    event.preventDefault();
    if (!able || busy) return;
    setBusy(true);
    const taken = await session.ask({ what: 'Snapshot', sandbox: sandbox.id, act: (client) => client.createSnapshot(sandbox.id, name.trim() || null) });
    setBusy(false);
    if (taken) setName('');
    await onTaken();
  };
  const hint = able ? undefined : session.mayWrite ? `It is ${STATE_LOOKS[sandbox.state].label}; a snapshot needs it running or paused.` : 'This key may only read.';
  return (
    <form class="exec-form" onSubmit={take} noValidate>
      <Field label="Name (optional)" hint={hint} class="grow">
        {(control) => (
          <input {...control} data-testid="snapshot-name" class="mono" autocomplete="off" spellcheck={false} value={name} onInput={(event) => setName(event.currentTarget.value)} />
        )}
      </Field>
      <button type="submit" class="button primary" data-testid="snapshot-create" aria-busy={busy} aria-disabled={!able || busy}>
        {busy ? 'Taking…' : 'Take snapshot'}
      </button>
    </form>
  );
}

function Card({ sandbox, snapshot, onChanged }: { sandbox: Sandbox; snapshot: Snapshot; onChanged: () => Promise<void> }) {
  const session = useSession();
  const now = useNow();
  const title = snapshot.name ?? snapshot.id;
  const own = snapshot.sandbox === sandbox.id;

  const rollback = async () => {
    const text = `${sandbox.id} goes back to ${title}: what its disk and memory hold now is lost.`;
    if (!(await confirm({ title: 'Roll back?', text, action: 'Roll back', dangerous: true }))) return;
    await session.ask({ what: 'Roll back', sandbox: sandbox.id, act: (client) => client.rollback(sandbox.id, snapshot.id) });
  };
  const remove = async () => {
    if (!(await confirm({ title: 'Delete this snapshot?', text: title, action: 'Delete', dangerous: true }))) return;
    await session.ask({ what: `Delete of snapshot ${title}`, sandbox: null, act: (client) => client.deleteSnapshot(snapshot.id) });
    await onChanged();
  };

  return (
    <li class="card" data-testid="snapshot-row" data-id={snapshot.id} data-name={snapshot.name ?? ''}>
      <div class="card-text">
        <p class="card-title mono">{title}</p>
        <p class="row-facts muted">
          <span>{formatClock(snapshot.created_unix_ms, now)}</span>
          <span>{snapshot.has_memory ? 'memory and disk' : 'disk only'}</span>
          <span>
            {snapshot.vcpus} vCPU, {formatMib(snapshot.memory_mib)}
          </span>
          <span>
            {formatBytes(snapshot.own_bytes)} own, {formatBytes(snapshot.shared_bytes)} shared
          </span>
          {!own && <span class="mono">of {snapshot.sandbox}</span>}
        </p>
      </div>
      <div class="row-actions">
        {own && (
          <Button testid="snapshot-rollback" enabled={allowed(sandbox.state).rollback && session.mayWrite} label={`Roll back to ${title}`} onPress={rollback}>
            Roll back…
          </Button>
        )}
        <CreateButton testid="snapshot-new-sandbox" snapshot={snapshot.id} label={`New sandbox from ${title}`} onCreated={openSandbox}>
          New sandbox…
        </CreateButton>
        <Button testid="snapshot-delete" kind="danger" enabled={session.mayWrite} label={`Delete ${title}`} onPress={remove}>
          Delete…
        </Button>
      </div>
    </li>
  );
}
