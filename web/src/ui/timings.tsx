// How long each thing asked for on this page took: the server's steps as bars, and the whole as it was seen here.

import type { Timing } from '../api/types';
import { formatClock, formatMs } from '../pure/format';
import { useNow } from '../state/clock';
import { type Asked, useSession } from '../state/session';
import { useStore } from '../state/store';

export function Timings({ sandbox }: { sandbox: string | null }) {
  const session = useSession();
  const asked = useStore(session.asked);
  if (asked.length === 0) return null;
  return (
    <section class="timings" aria-labelledby="timings-title" data-testid="timings">
      <h2 id="timings-title">Timings</h2>
      <p class="muted">What was asked on this page, newest first.</p>
      <ol class="timing-list">
        {asked.map((entry, index) => (
          <Entry key={entry.id} entry={entry} open={index === 0} here={entry.sandbox === sandbox} />
        ))}
      </ol>
    </section>
  );
}

function Entry({ entry, open, here }: { entry: Asked; open: boolean; here: boolean }) {
  const now = useNow();
  return (
    <li data-testid="timing" data-what={entry.what}>
      <details open={open}>
        <summary>
          <span class="timing-what">
            {entry.failed && <span class="timing-failed">✕ failed: </span>}
            {entry.what}
          </span>
          {entry.sandbox && <span class={here ? 'mono timing-id' : 'mono timing-id muted'}>{entry.sandbox}</span>}
          <span class="timing-total mono">{formatMs(entry.wall_ms)}</span>
          <time class="muted timing-clock">{formatClock(entry.unix_ms, now)}</time>
        </summary>
        <Steps timings={entry.timings} wall_ms={entry.wall_ms} />
      </details>
    </li>
  );
}

function Steps({ timings, wall_ms }: { timings: readonly Timing[]; wall_ms: number }) {
  const bars = [...timings, { step: 'measured here', ms: wall_ms }];
  const longest = Math.max(...bars.map(({ ms }) => ms), 0.001);
  return (
    <table class="steps">
      <thead class="sr-only">
        <tr>
          <th scope="col">Step</th>
          <th scope="col">Bar</th>
          <th scope="col">Time</th>
        </tr>
      </thead>
      <tbody>
        {bars.map(({ step, ms }, index) => (
          <tr key={index} class={index === timings.length ? 'whole' : undefined}>
            <th scope="row">{step}</th>
            <td class="step-bar">
              <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                <rect class="bar-track" width="100" height="8" />
                <rect class="bar" width={Math.max(0.5, (ms / longest) * 100)} height="8" />
              </svg>
            </td>
            <td class="mono step-ms">{formatMs(ms)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
