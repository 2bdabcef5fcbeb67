// The chosen sandbox: what it is, what can be done with it, and the tabs.

import type { ComponentChildren } from 'preact';
import type { Sandbox } from '../api/types';
import { formatClock, formatMib, formatTimeLeft, formatVmm } from '../pure/format';
import { useNow } from '../state/clock';
import { openSandbox, openTab, place } from '../state/place';
import { useSession } from '../state/session';
import { useStore } from '../state/store';
import { Actions } from './actions';
import { Exec } from './exec';
import { Files } from './files';
import { History } from './history';
import { Logs } from './logs';
import { Metrics } from './metrics';
import { Button, Empty, Labels, StateBadge } from './parts';
import { Snapshots } from './snapshots';
import { type Tab, Tabs } from './tabs';
import { TerminalPanel } from './terminal';

export function Detail({ id }: { id: string }) {
  const session = useSession();
  const sandbox = useStore(session.sandboxes).get(id);
  const loaded = useStore(session.loaded);
  if (!sandbox) return loaded ? <NotHere id={id} /> : <Empty title="Looking…" />;
  return (
    <article class="detail" data-testid="detail" data-id={id} data-state={sandbox.state}>
      <BackToList />
      <header class="detail-head">
        <h2 class="mono">{id}</h2>
        <StateBadge state={sandbox.state} />
        <Copy text={id} />
      </header>
      {sandbox.reason && <p class="reason">{sandbox.reason}</p>}
      <Actions sandbox={sandbox} />
      <Facts sandbox={sandbox} />
      <SandboxTabs sandbox={sandbox} />
    </article>
  );
}

function SandboxTabs({ sandbox }: { sandbox: Sandbox }) {
  const wanted = useStore(place).tab;
  const tabs: readonly Tab[] = [
    { id: 'exec', title: 'Exec', panel: () => <Exec sandbox={sandbox} /> },
    { id: 'terminal', title: 'Terminal', panel: (active) => <TerminalPanel sandbox={sandbox} active={active} /> },
    { id: 'files', title: 'Files', panel: () => <Files sandbox={sandbox} /> },
    { id: 'snapshots', title: 'Snapshots', panel: (active) => <Snapshots sandbox={sandbox} active={active} /> },
    { id: 'metrics', title: 'Metrics', panel: (active) => <Metrics sandbox={sandbox} active={active} /> },
    { id: 'logs', title: 'Logs', panel: (active) => <Logs sandbox={sandbox} active={active} /> },
    { id: 'events', title: 'Events', panel: () => <History id={sandbox.id} /> },
  ];
  const active = tabs.some(({ id }) => id === wanted) ? (wanted as string) : 'exec';
  return <Tabs label="About this sandbox" tabs={tabs} active={active} onChange={openTab} />;
}

function Facts({ sandbox }: { sandbox: Sandbox }) {
  const now = useNow();
  return (
    <dl class="facts" data-testid="facts">
      <Fact name="Time left" testid="fact-left">
        {formatTimeLeft(sandbox.deadline_unix_ms, now)}
        {sandbox.deadline_unix_ms !== null && <span class="muted">, then {sandbox.on_timeout === 'pause' ? 'paused' : 'destroyed'}</span>}
      </Fact>
      <Fact name="Template">{sandbox.template}</Fact>
      <Fact name="Size">
        {sandbox.vcpus} vCPU, {formatMib(sandbox.memory_mib)}, {formatMib(sandbox.disk_mib)} disk
      </Fact>
      <Fact name="Start">{sandbox.start}</Fact>
      <Fact name="Driver">
        {formatVmm(sandbox.vmm)} · {sandbox.storage}
      </Fact>
      <Fact name="Kernel">{sandbox.kernel}</Fact>
      <Fact name="Created">{formatClock(sandbox.created_unix_ms, now)}</Fact>
      <Fact name="Auto-resume">{sandbox.auto_resume ? 'yes' : 'no'}</Fact>
      {Object.keys(sandbox.metadata).length > 0 && (
        <Fact name="Labels" wide>
          <Labels metadata={sandbox.metadata} />
        </Fact>
      )}
    </dl>
  );
}

function Fact({ name, testid, wide = false, children }: { name: string; testid?: string; wide?: boolean; children: ComponentChildren }) {
  return (
    <div class={wide ? 'wide' : undefined}>
      <dt>{name}</dt>
      <dd data-testid={testid}>{children}</dd>
    </div>
  );
}

function NotHere({ id }: { id: string }) {
  const session = useSession();
  const gone = useStore(session.gone).get(id);
  const now = useNow();
  return (
    <div data-testid="gone">
      <BackToList />
      <Empty title={`${id} is not here`}>
        <p>{gone ? `It ended at ${formatClock(gone.ended_unix_ms, now)}: ${gone.why}.` : 'It was destroyed, or it never was on this host.'}</p>
      </Empty>
      <History id={id} />
    </div>
  );
}

/** On a narrow screen the list and the sandbox take turns. */
function BackToList() {
  return (
    <div class="back">
      <Button testid="back" kind="quiet" onPress={() => openSandbox(null)}>
        ← All sandboxes
      </Button>
    </div>
  );
}

/** The clipboard is there on secure origins alone. */
function Copy({ text }: { text: string }) {
  const session = useSession();
  if (!navigator.clipboard) return null;
  const copy = () =>
    navigator.clipboard.writeText(text).then(
      () => session.notice.set('copied'),
      (thrown) => session.report('Copying', thrown),
    );
  return (
    <Button testid="copy-id" kind="quiet" onPress={copy}>
      Copy id
    </Button>
  );
}
