// What the sandbox's console said last, and the commands it has run.

import { useEffect, useRef, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { Logs as LogsAnswer, PastCommand, Sandbox } from '../api/types';
import { LOGS_POLL_MS } from '../limits';
import { bytesToText, formatBytes, formatClock, formatExit } from '../pure/format';
import { joinWords } from '../pure/words';
import { useNow } from '../state/clock';
import { useSession } from '../state/session';
import { Check } from './create';
import { Button } from './parts';
import { ProblemHere } from './problems';

export function Logs({ sandbox, active }: { sandbox: Sandbox; active: boolean }) {
  const { client } = useSession();
  const [logs, setLogs] = useState<LogsAnswer | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [follow, setFollow] = useState(false);

  const look = async () => {
    try {
      setLogs(await client.logs(sandbox.id));
      setFailure(null);
    } catch (thrown) {
      setFailure(Failure.from(thrown));
    }
  };
  useEffect(() => {
    if (!active) return;
    void look();
    if (!follow) return;
    const timer = setInterval(look, LOGS_POLL_MS);
    return () => clearInterval(timer);
  }, [active, follow, sandbox.state]);

  return (
    <div class="logs">
      <div class="line">
        <h3 class="grow">Console</h3>
        <Check testid="logs-follow" checked={follow} onChange={setFollow}>
          follow
        </Check>
        <Button testid="logs-refresh" onPress={look}>
          Refresh
        </Button>
      </div>
      <ProblemHere what="Asking for the console" failure={failure} />
      {logs && <Console logs={logs} />}
      {logs && logs.execs.length > 0 && <PastCommands execs={logs.execs} />}
    </div>
  );
}

function Console({ logs }: { logs: LogsAnswer }) {
  const box = useRef<HTMLPreElement>(null);
  const text = bytesToText(logs.console);
  useEffect(() => {
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);
  return (
    <>
      {logs.console.truncated && <p class="note">Older lines are left out.</p>}
      <pre ref={box} class="screen" data-testid="logs-console" tabIndex={0} aria-label="Console">
        {text || '(it has said nothing)'}
      </pre>
    </>
  );
}

function PastCommands({ execs }: { execs: readonly PastCommand[] }) {
  const now = useNow();
  return (
    <>
      <h3>Commands</h3>
      <ul class="plain-list" data-testid="logs-execs">
        {execs.map((exec) => (
          <li key={`${exec.pid}-${exec.started_unix_ms}`} class="line wrap">
            <span class="mono muted">{formatClock(exec.started_unix_ms, now)}</span>
            <code class="grow cut">{joinWords(exec.command)}</code>
            <span>{exec.exit ? formatExit(exec.exit) : exec.ended_unix_ms ? 'ended' : '▶ runs'}</span>
            <span class="muted">{formatBytes(exec.output_bytes)} of output</span>
          </li>
        ))}
      </ul>
    </>
  );
}
