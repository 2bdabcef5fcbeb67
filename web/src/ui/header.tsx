// The bar at the top: whose page this is, how the host is, whether the list is live, which key is used.

import { useEffect, useState } from 'preact/hooks';
import type { Connection } from '../api/events';
import type { Host } from '../api/types';
import { HOST_POLL_MS } from '../limits';
import { formatBytes, formatMib, formatVmm } from '../pure/format';
import { useNow } from '../state/clock';
import { useSession } from '../state/session';
import { useStore } from '../state/store';
import { Button } from './parts';

export function Header({ onForget }: { onForget: () => void }) {
  const { key } = useSession();
  return (
    <header class="header">
      <h1 class="brand">
        <img src="/assets/favicon.svg" alt="" width="22" height="22" />
        Wrenn
      </h1>
      <LiveSign />
      <HostSign />
      <div class="header-end">
        <span class="whoami" data-testid="whoami">
          <span class="sr-only">Key: </span>
          <strong>{key.name ?? key.prefix}</strong> <span class="chip">{key.scope}</span>
        </span>
        <Button testid="key-forget" onPress={onForget} title="Takes the key out of this tab">
          Forget key
        </Button>
        <a href="/docs">API</a>
      </div>
    </header>
  );
}

function LiveSign() {
  const session = useSession();
  const connection = useStore(session.connection);
  const now = useNow();
  const waits = connection.kind === 'waiting';
  return (
    <span class={`live live-${connection.kind}`} data-testid="live" data-state={connection.kind} title={waits ? connection.why.message : undefined}>
      <svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true">
        <path d={LIVE_SHAPES[connection.kind]} fill-rule="evenodd" />
      </svg>
      <span>{liveText(connection, now)}</span>
      {waits && (
        <Button testid="live-retry" kind="quiet" onPress={session.retryNow}>
          Retry now
        </Button>
      )}
    </span>
  );
}

const LIVE_SHAPES: Readonly<Record<Connection['kind'], string>> = {
  connecting: 'M8 2a6 6 0 1 0 6 6h-2a4 4 0 1 1-4-4z',
  live: 'M8 2a6 6 0 1 0 0 12A6 6 0 1 0 8 2z',
  waiting: 'M8 1l7 13H1zM7 6v4h2V6zM7 11v2h2v-2z',
  refused: 'M3 2l5 5 5-5 1 1-5 5 5 5-1 1-5-5-5 5-1-1 5-5-5-5z',
};

function liveText(connection: Connection, now_unix_ms: number): string {
  switch (connection.kind) {
    case 'connecting':
      return 'connecting…';
    case 'live':
      return 'live';
    case 'waiting':
      return `not live, next try in ${Math.max(0, Math.ceil((connection.until_unix_ms - now_unix_ms) / 1000))} s`;
    case 'refused':
      return 'not live: the key is refused';
  }
}

/** Nothing while the host is not known; a host that cannot be asked is said by the live sign. */
function HostSign() {
  const session = useSession();
  const [host, setHost] = useState<Host | null>(null);
  const [stale, setStale] = useState(false);
  const live = useStore(session.connection).kind === 'live';
  useEffect(() => {
    const look = () =>
      session.client.host().then(
        (answer) => {
          setHost(answer);
          setStale(false);
        },
        () => setStale(true),
      );
    void look();
    const timer = setInterval(look, HOST_POLL_MS);
    return () => clearInterval(timer);
  }, [session, live]);
  if (!host) return <span class="host muted">{stale ? 'the host’s load is not known' : ''}</span>;
  return (
    <span class="host muted" data-testid="host" title={stale ? 'as it was when it last answered' : `Wrenn ${host.version}`}>
      <span>{host.host}</span>
      <span class="host-more">{formatVmm(host.vmm)} · {host.storage}</span>
      <span>
        <abbr title="memory taken by sandboxes, of all">mem</abbr> {formatMib(host.memory_taken_mib)} / {formatMib(host.memory_mib)}
      </span>
      <span class="host-more">{host.cpus} CPUs</span>
      <span class="host-more">
        <abbr title="disk space that is free">disk</abbr> {formatBytes(host.disk_free_bytes)} free
      </span>
    </span>
  );
}
