// The commands that run in a sandbox, whoever started them: looked at when asked, attached to, ended.

import { useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { RunningCommand, Sandbox } from '../api/types';
import { joinWords } from '../pure/words';
import { allowed } from '../pure/states';
import { useSession } from '../state/session';
import { Button } from './parts';
import { ProblemHere } from './problems';

interface RunningProps {
  sandbox: Sandbox;
  attachable: boolean;
  onAttach: (pid: number, command: string[]) => void;
}

export function RunningCommands({ sandbox, attachable, onAttach }: RunningProps) {
  const session = useSession();
  const [items, setItems] = useState<RunningCommand[] | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const runs = allowed(sandbox.state).exec;

  const look = async () => {
    try {
      setItems((await session.client.commands(sandbox.id)).items);
      setFailure(null);
    } catch (thrown) {
      setFailure(Failure.from(thrown));
    }
  };
  const end = async (pid: number) => {
    await session.ask({ what: `Signal to ${pid}`, sandbox: sandbox.id, act: (client) => client.signal(sandbox.id, pid, 15) });
    await look();
  };

  return (
    <details class="running" onToggle={(event) => event.currentTarget.open && runs && void look()}>
      <summary data-testid="exec-list-open">Running commands</summary>
      <ProblemHere what="Looking at its commands" failure={failure} />
      {items?.length === 0 && <p class="muted">Nothing that was started through the server.</p>}
      <ul class="plain-list">
        {items?.map(({ pid, command }) => (
          <li key={pid} class="line" data-testid="exec-list-item" data-pid={pid}>
            <span class="mono muted">{pid}</span>
            <code class="grow cut">{joinWords(command)}</code>
            <Button testid="exec-attach" enabled={attachable} label={`Attach to ${pid}`} onPress={() => onAttach(pid, command)}>
              Attach
            </Button>
            <Button testid="exec-terminate" kind="danger" enabled={session.mayWrite} label={`End ${pid}`} onPress={() => end(pid)}>
              End
            </Button>
          </li>
        ))}
      </ul>
      <Button testid="exec-list-refresh" enabled={runs} onPress={look}>
        Look again
      </Button>
    </details>
  );
}
