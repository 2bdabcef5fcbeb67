// The list of sandboxes, youngest first; one of them may be chosen.

import type { Sandbox } from '../api/types';
import { formatCount, formatMib, formatTimeLeft, formatVmm } from '../pure/format';
import { STATE_LOOKS } from '../pure/states';
import { useNow } from '../state/clock';
import { openSandbox } from '../state/place';
import { useSession } from '../state/session';
import { useStore } from '../state/store';
import { CreateButton } from './create';
import { Empty, Labels, StateBadge } from './parts';

export function SandboxList({ chosen }: { chosen: string | null }) {
  const session = useSession();
  const sandboxes = [...useStore(session.sandboxes).values()].sort((a, b) => b.created_unix_ms - a.created_unix_ms || a.id.localeCompare(b.id));
  const loaded = useStore(session.loaded);
  return (
    <nav class="list" aria-label="Sandboxes">
      <div class="list-head">
        <h2>
          Sandboxes <span class="muted count">{sandboxes.length}</span>
        </h2>
        <CreateButton testid="create-open" onCreated={openSandbox} />
      </div>
      {sandboxes.length > 0 && <p class="list-sum muted">{summary(sandboxes)}</p>}
      {sandboxes.length === 0 && <Empty title={loaded ? 'None is here' : 'Looking…'} testid="list-empty" />}
      <ul class="rows" data-testid="sandbox-list">
        {sandboxes.map((sandbox) => (
          <Row key={sandbox.id} sandbox={sandbox} chosen={sandbox.id === chosen} />
        ))}
      </ul>
    </nav>
  );
}

function Row({ sandbox, chosen }: { sandbox: Sandbox; chosen: boolean }) {
  const now = useNow();
  return (
    <li class={chosen ? 'row chosen' : 'row'} data-testid="sandbox-row" data-id={sandbox.id} data-state={sandbox.state}>
      <div class="row-top">
        <button type="button" class="row-open mono" aria-current={chosen ? 'true' : undefined} onClick={() => openSandbox(sandbox.id)}>
          {sandbox.id}
        </button>
        <StateBadge state={sandbox.state} />
      </div>
      <p class="row-facts">
        <span>{sandbox.template}</span>
        <span>{sandbox.vcpus} vCPU</span>
        <span>{formatMib(sandbox.memory_mib)}</span>
        <span>{formatMib(sandbox.disk_mib)} disk</span>
      </p>
      <p class="row-facts muted">
        <span data-testid="time-left">{formatTimeLeft(sandbox.deadline_unix_ms, now)}</span>
        <span>{sandbox.start} start</span>
        <span>{formatVmm(sandbox.vmm)}</span>
        <span>{sandbox.storage}</span>
      </p>
      <Labels metadata={sandbox.metadata} />
    </li>
  );
}

/** `3 running, 1 paused`, in the order of the table of states. */
function summary(sandboxes: readonly Sandbox[]): string {
  const counts = new Map<string, number>();
  for (const { state } of sandboxes) counts.set(state, (counts.get(state) ?? 0) + 1);
  const parts = Object.entries(STATE_LOOKS)
    .filter(([state]) => counts.has(state))
    .map(([state, look]) => `${counts.get(state)} ${look.label}`);
  return parts.join(', ') || formatCount(sandboxes.length, 'sandbox', 'sandboxes');
}
