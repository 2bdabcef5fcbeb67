// What happened to one sandbox while this page was open, newest first.

import { formatClock } from '../pure/format';
import { useNow } from '../state/clock';
import { useSession } from '../state/session';
import { useStore } from '../state/store';
import { Empty } from './parts';

export function History({ id }: { id: string }) {
  const session = useSession();
  const now = useNow();
  const entries = useStore(session.journal).filter((entry) => entry.sandbox === id);
  if (entries.length === 0) return <Empty title="Nothing has happened since this page was opened" />;
  return (
    <ol class="history" data-testid="events">
      {entries.map((entry) => (
        <li key={entry.id} data-testid="event">
          <time class="mono muted">{formatClock(entry.unix_ms, now)}</time>
          <span class="chip">{entry.source}</span>
          <span>{entry.text}</span>
        </li>
      ))}
    </ol>
  );
}
