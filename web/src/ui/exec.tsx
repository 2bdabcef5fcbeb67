// Commands: one at a time on this page, with live output, input, signals and the exit; and those that run already.

import { useEffect, useRef, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import { CommandStream, type Start } from '../api/stream';
import type { ExecRequest, Exit, Sandbox } from '../api/types';
import { COMMAND_HISTORY_MAX, OUTPUT_DRAW_MS } from '../limits';
import { formatBytes, formatExit, formatMs } from '../pure/format';
import { appendOutput, NO_OUTPUT, type Output, type Voice } from '../pure/output';
import { allowed, STATE_LOOKS } from '../pure/states';
import { joinWords, splitWords } from '../pure/words';
import { useSession } from '../state/session';
import { Check } from './create';
import { OutputView } from './output';
import { Button, Field } from './parts';
import { ProblemHere } from './problems';
import { RunningCommands } from './running';

/** How far the command on this page is. */
type Run =
  | { kind: 'none' }
  | { kind: 'opening'; line: string }
  | { kind: 'running'; line: string; pid: number }
  | { kind: 'ended'; line: string; exit: Exit; ms: number }
  | { kind: 'broken'; line: string; failure: Failure; place: { pid: number; offset: number } | null };

interface Form {
  line: string;
  how: 'split' | 'shell';
  stdin: boolean;
  workdir: string;
  user: string;
}

export function Exec({ sandbox }: { sandbox: Sandbox }) {
  const { mayWrite } = useSession();
  const [form, setForm] = useState<Form>({ line: '', how: 'split', stdin: false, workdir: '', user: '' });
  const [problem, setProblem] = useState<string | null>(null);
  const command = useCommand(sandbox.id);
  const history = useHistory();
  const set = (change: Partial<Form>) => setForm((before) => ({ ...before, ...change }));
  const busy = command.run.kind === 'opening' || command.run.kind === 'running';
  const able = mayWrite && allowed(sandbox.state).exec;

  const submit = (event: Event) => {
    event.preventDefault();
    if (busy || !able) return;
    const request = requestOf(form);
    setProblem('error' in request ? request.error : null);
    if ('error' in request) return;
    history.add(form.line);
    command.start(form.line, { kind: 'exec', request });
  };

  return (
    <div class="exec">
      <form class="exec-form" onSubmit={submit} noValidate>
        <Field label="Command" problem={problem} hint={hintOf(form)} class="grow">
          {(control) => (
            <input
              {...control}
              data-testid="exec-input"
              class="mono"
              autocomplete="off"
              autocapitalize="off"
              spellcheck={false}
              placeholder={form.how === 'shell' ? 'ls -l /etc | head' : 'uname -a'}
              value={form.line}
              onInput={(event) => {
                set({ line: event.currentTarget.value });
                setProblem(null);
              }}
              onKeyDown={(event) => {
                const line = history.move(event.key, form.line);
                if (line === null) return;
                event.preventDefault();
                set({ line });
              }}
            />
          )}
        </Field>
        <button type="submit" class="button primary" data-testid="exec-run" aria-disabled={busy || !able} title={able ? undefined : whyNot(sandbox, mayWrite)}>
          Run
        </button>
      </form>
      <div class="choices">
        <label class="choice">
          <input type="radio" name="exec-how" data-testid="exec-how-split" checked={form.how === 'split'} onChange={() => set({ how: 'split' })} />
          split into words
        </label>
        <label class="choice">
          <input type="radio" name="exec-how" data-testid="exec-how-shell" checked={form.how === 'shell'} onChange={() => set({ how: 'shell' })} />
          through <code>sh -c</code>
        </label>
        <Check testid="exec-stdin-open" checked={form.stdin} onChange={(stdin) => set({ stdin })}>
          keep stdin open
        </Check>
        <details class="more">
          <summary>More</summary>
          <div class="grid2">
            <Field label="Folder">
              {(control) => (
                <input {...control} data-testid="exec-workdir" class="mono" autocomplete="off" value={form.workdir} onInput={(event) => set({ workdir: event.currentTarget.value })} />
              )}
            </Field>
            <Field label="User">
              {(control) => (
                <input {...control} data-testid="exec-user" class="mono" autocomplete="off" value={form.user} onInput={(event) => set({ user: event.currentTarget.value })} />
              )}
            </Field>
          </div>
        </details>
      </div>
      {!able && <p class="note">{whyNot(sandbox, mayWrite)}</p>}
      <RunView command={command} />
      <RunningCommands
        sandbox={sandbox}
        onAttach={(pid, words) => command.start(joinWords(words), { kind: 'attach', pid, offset: 0 })}
        attachable={!busy && able}
      />
    </div>
  );
}

function RunView({ command }: { command: Command }) {
  const { run, output } = command;
  if (run.kind === 'none') return null;
  return (
    <section class="run" aria-label="The command’s output">
      <header class="run-head">
        <code class="run-line">{run.line}</code>
        <RunState run={run} />
        {run.kind === 'running' && (
          <span class="run-signals" role="group" aria-label="Signals">
            <Button testid="exec-interrupt" title="SIGINT, as Ctrl-C" onPress={() => command.signal(2)}>
              Interrupt
            </Button>
            <Button testid="exec-kill" kind="danger" title="SIGKILL: it cannot be refused" onPress={() => command.signal(9)}>
              Kill
            </Button>
          </span>
        )}
        {run.kind === 'broken' && run.place && (
          <Button testid="exec-reattach" onPress={command.reattach}>
            Connect again
          </Button>
        )}
      </header>
      <ProblemHere what="The command" failure={run.kind === 'broken' ? run.failure : null} />
      <OutputView output={output} />
      {run.kind === 'running' && command.takesInput && <InputLine command={command} />}
    </section>
  );
}

function RunState({ run }: { run: Run }) {
  switch (run.kind) {
    case 'none':
      return null;
    case 'opening':
      return <span class="exit">starting…</span>;
    case 'running':
      return (
        <span class="exit" data-testid="exec-running">
          ▶ running, pid {run.pid}
        </span>
      );
    case 'ended': {
      const fine = run.exit.kind === 'exited' && run.exit.code === 0;
      return (
        <span class={fine ? 'exit fine' : 'exit bad'} data-testid="exec-exit" data-kind={run.exit.kind} data-code={run.exit.kind === 'exited' ? run.exit.code : undefined}>
          {fine ? '✓' : '✕'} {formatExit(run.exit)} <span class="muted">after {formatMs(run.ms)}</span>
        </span>
      );
    }
    case 'broken':
      return <span class="exit bad">✕ not heard of any more</span>;
  }
}

function InputLine({ command }: { command: Command }) {
  const [line, setLine] = useState('');
  const send = (event: Event) => {
    event.preventDefault();
    command.input(`${line}\n`);
    setLine('');
  };
  return (
    <form class="exec-form" onSubmit={send}>
      <Field label="Input, one line" class="grow">
        {(control) => (
          <input {...control} data-testid="exec-stdin" class="mono" autocomplete="off" spellcheck={false} value={line} onInput={(event) => setLine(event.currentTarget.value)} />
        )}
      </Field>
      <button type="submit" class="button" data-testid="exec-stdin-send">
        Send
      </button>
      <Button testid="exec-stdin-close" title="End of input, as Ctrl-D" onPress={command.closeInput}>
        End input
      </Button>
    </form>
  );
}

interface Command {
  run: Run;
  output: Output;
  takesInput: boolean;
  start: (line: string, start: Start) => void;
  reattach: () => void;
  input: (text: string) => void;
  closeInput: () => void;
  signal: (signal: number) => void;
}

/** The command of this page: its stream, and what has come of it. Leaving the sandbox leaves the command alone. */
function useCommand(sandbox: string): Command {
  const { client } = useSession();
  const [run, setRun] = useState<Run>({ kind: 'none' });
  const [output, setOutput] = useState<Output>(NO_OUTPUT);
  const [takesInput, setTakesInput] = useState(false);
  const stream = useRef<CommandStream | null>(null);
  useEffect(() => () => stream.current?.leave(), []);

  const open = (line: string, start: Start) => {
    stream.current?.leave();
    const begun = performance.now();
    const voices = new Voices((voice, text) => setOutput((before) => appendOutput(before, voice, text)));
    setRun({ kind: 'opening', line });
    const broken = (failure: Failure, place: { pid: number; offset: number } | null) => {
      voices.flush();
      setRun({ kind: 'broken', line, failure, place });
    };
    const opened = new CommandStream(client, sandbox, start, {
      started: (pid) => setRun({ kind: 'running', line, pid }),
      output: (from, bytes) => voices.hear(from === 'stderr' ? 'stderr' : 'stdout', bytes),
      gap: (bytes) => voices.note(`[${formatBytes(bytes)} of output are not kept any more]\n`),
      ended: (exit) => {
        voices.flush();
        setRun({ kind: 'ended', line, exit, ms: performance.now() - begun });
      },
      failed: (failure) => broken(failure, null),
      lost: (failure) => broken(failure, opened.place),
    });
    stream.current = opened;
  };

  return {
    run,
    output,
    takesInput,
    start: (line, start) => {
      setOutput(NO_OUTPUT);
      setTakesInput(start.kind === 'attach' || (start.kind === 'exec' && start.request.stdin === true));
      open(line, start);
    },
    reattach: () => {
      if (run.kind === 'broken' && run.place) open(run.line, { kind: 'attach', ...run.place });
    },
    input: (text) => stream.current?.input(new TextEncoder().encode(text)),
    closeInput: () => {
      stream.current?.closeInput();
      setTakesInput(false);
    },
    signal: (signal) => stream.current?.signal(signal),
  };
}

/** Bytes of two streams as text, gathered for a moment: a page that is drawn for every frame falls behind. */
class Voices {
  readonly #tell: (voice: Voice, text: string) => void;
  readonly #decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  #waiting: { voice: Voice; text: string }[] = [];
  #timer: ReturnType<typeof setTimeout> | null = null;

  constructor(tell: (voice: Voice, text: string) => void) {
    this.#tell = tell;
  }

  hear(voice: 'stdout' | 'stderr', bytes: Uint8Array): void {
    this.#add(voice, this.#decoders[voice].decode(bytes, { stream: true }));
  }

  note(text: string): void {
    this.#add('note', text);
  }

  flush(): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { voice, text } of waiting) this.#tell(voice, text);
  }

  #add(voice: Voice, text: string): void {
    const last = this.#waiting[this.#waiting.length - 1];
    if (last?.voice === voice) last.text += text;
    else this.#waiting.push({ voice, text });
    this.#timer ??= setTimeout(() => this.flush(), OUTPUT_DRAW_MS);
  }
}

/** Arrow keys bring back what was run before, as in a shell. */
function useHistory() {
  const lines = useRef<string[]>([]);
  const at = useRef(0);
  return {
    add: (line: string) => {
      lines.current = [...lines.current.filter((other) => other !== line), line].slice(-COMMAND_HISTORY_MAX);
      at.current = lines.current.length;
    },
    /** null: this key is none of ours. */
    move: (key: string, current: string): string | null => {
      if (key !== 'ArrowUp' && key !== 'ArrowDown') return null;
      if (lines.current.length === 0) return null;
      at.current = Math.min(lines.current.length, Math.max(0, at.current + (key === 'ArrowUp' ? -1 : 1)));
      return lines.current[at.current] ?? (key === 'ArrowDown' ? '' : current);
    },
  };
}

function requestOf(form: Form): ExecRequest | { error: string } {
  const command = commandOf(form);
  if ('error' in command) return command;
  const request: ExecRequest = { command: command.words };
  if (form.stdin) request.stdin = true;
  if (form.workdir.trim()) request.workdir = form.workdir.trim();
  if (form.user.trim()) request.user = form.user.trim();
  return request;
}

function commandOf(form: Form): { words: string[] } | { error: string } {
  if (form.how === 'split') return splitWords(form.line);
  return form.line.trim() ? { words: ['sh', '-c', form.line] } : { error: 'there is no command' };
}

function hintOf(form: Form): string | undefined {
  if (form.how === 'shell' || form.line.trim() === '') return undefined;
  const split = splitWords(form.line);
  if ('error' in split) return undefined;
  return split.needsShell ? `${split.needsShell} means something to a shell alone: choose “through sh -c” for that.` : undefined;
}

function whyNot(sandbox: Sandbox, mayWrite: boolean): string {
  return mayWrite ? `It is ${STATE_LOOKS[sandbox.state].label}; commands need it to run.` : 'This key may only read.';
}
