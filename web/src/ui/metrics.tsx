// The last quarter of an hour as sparklines: CPU, memory, disk, network. Asked for while they are looked at.

import { useEffect, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { GuestSample, Sample, Sandbox } from '../api/types';
import { METRICS_POLL_MS, METRICS_SPAN_MS } from '../limits';
import { formatBytes, formatDuration, formatMib } from '../pure/format';
import { gauge, mergeSamples, rate } from '../pure/samples';
import { type Frame, highest, latest, niceTop, type Point, sparkArea, sparkLine } from '../pure/spark';
import { useSession } from '../state/session';
import { Empty } from './parts';
import { ProblemHere } from './problems';

export function Metrics({ sandbox, active }: { sandbox: Sandbox; active: boolean }) {
  const { samples, failure } = useSamples(sandbox.id, active);
  const from = samples[0]?.unix_ms ?? 0;
  const to = samples[samples.length - 1]?.unix_ms ?? 0;
  const span = { from, to };
  const diskShared = samples[samples.length - 1]?.disk_shared_bytes ?? 0;
  return (
    <div class="metrics" data-testid="metrics" data-samples={samples.length}>
      <ProblemHere what="Asking for metrics" failure={failure} />
      {samples.length === 0 && !failure && <Empty title="No sample yet: one is taken every 5 s while it runs" />}
      {samples.length > 0 && (
        <>
          <p class="muted">The last {formatDuration((to - from) / 1000)}, one sample every 5 s.</p>
          <div class="charts">
            <Chart title="CPU" span={span} lines={[{ name: 'used', points: gauge(samples, (sample) => sample.cpu_percent) }]} format={percent} top={100} base={10} note={`of ${sandbox.vcpus} vCPU`} />
            <Chart title="Memory" span={span} lines={[{ name: 'taken', points: gauge(samples, (sample) => sample.memory_bytes) }, guest(samples, (said) => said.memory_used_bytes)]} format={formatBytes} base={1024} note={`of ${formatMib(sandbox.memory_mib)}; the guest's own word dashed`} />
            <Chart title="Disk" span={span} lines={[{ name: 'own', points: gauge(samples, (sample) => sample.disk_own_bytes) }, guest(samples, (said) => said.disk_used_bytes)]} format={formatBytes} base={1024} note={`${formatBytes(diskShared)} shared; what the guest sees dashed`} />
            <Chart
              title="Network"
              span={span}
              lines={[
                { name: 'in', points: rate(samples, (sample) => sample.network_rx_bytes) },
                { name: 'out', points: rate(samples, (sample) => sample.network_tx_bytes) },
              ]}
              format={(value) => `${formatBytes(value)}/s`}
              base={1024}
              note="in solid, out dashed"
            />
          </div>
        </>
      )}
    </div>
  );
}

function useSamples(id: string, active: boolean): { samples: readonly Sample[]; failure: Failure | null } {
  const { client } = useSession();
  const [samples, setSamples] = useState<readonly Sample[]>([]);
  const [failure, setFailure] = useState<Failure | null>(null);
  useEffect(() => {
    if (!active) return;
    let last = 0;
    const look = async () => {
      try {
        // By the samples' own clock: this machine's may differ from the host's.
        const fresh = (await client.metrics(id, last === 0 ? 0 : last + 1)).samples;
        last = Math.max(last, ...fresh.map((sample) => sample.unix_ms));
        setSamples((old) => mergeSamples(old, fresh, last - METRICS_SPAN_MS));
        setFailure(null);
      } catch (thrown) {
        setFailure(Failure.from(thrown));
      }
    };
    void look();
    const timer = setInterval(look, METRICS_POLL_MS);
    return () => clearInterval(timer);
  }, [id, active]);
  return { samples, failure };
}

interface Line {
  name: string;
  points: Point[];
}

/** What the guest says of itself, where it does. */
function guest(samples: readonly Sample[], pick: (said: GuestSample) => number): Line {
  return { name: 'guest', points: gauge(samples, (sample) => (sample.guest ? pick(sample.guest) : null)) };
}

interface ChartProps {
  title: string;
  span: { from: number; to: number };
  lines: readonly Line[];
  format: (value: number) => string;
  base: 10 | 1024;
  /** The upper edge at least. */
  top?: number;
  note: string;
}

function Chart({ title, span, lines, format, base, top = 0, note }: ChartProps) {
  const peak = Math.max(top, ...lines.map(({ points }) => highest(points) ?? 0));
  const frame: Frame = { from_unix_ms: span.from, to_unix_ms: span.to, top: niceTop(peak, base), width: 300, height: 64 };
  const now = lines.map(({ name, points }) => {
    const value = latest(points);
    return `${lines.length > 1 ? `${name} ` : ''}${value === null ? 'not known' : format(value)}`;
  });
  const highs = lines.map(({ name, points }) => `${name} at most ${format(highest(points) ?? 0)}`);
  return (
    <figure class="chart" data-testid={`metric-${title.toLowerCase()}`}>
      <figcaption>
        <span class="chart-title">{title}</span>
        <span class="chart-now mono">{now.join(', ')}</span>
      </figcaption>
      <svg viewBox={`0 0 ${frame.width} ${frame.height}`} preserveAspectRatio="none" role="img" aria-label={`${title}: ${now.join(', ')}; ${highs.join(', ')}`}>
        <line class="chart-grid" x1="0" x2={frame.width} y1={frame.height / 2} y2={frame.height / 2} />
        {lines.map(({ name, points }, index) => (
          <g key={name} class={`line-${index}`}>
            {index === 0 && <path class="chart-area" d={sparkArea(points, frame)} />}
            <path class="chart-line" d={sparkLine(points, frame)} />
          </g>
        ))}
      </svg>
      <p class="chart-foot muted">
        <span>{note}</span>
        <span>top {format(frame.top)}</span>
      </p>
    </figure>
  );
}

function percent(value: number): string {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}
