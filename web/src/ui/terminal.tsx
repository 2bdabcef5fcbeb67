// A login shell on a terminal. Lives as long as its sandbox is the chosen one; goes on by itself after pause and resume.

import { FitAddon } from '@xterm/addon-fit';
import { type ITheme, Terminal } from '@xterm/xterm';
import { useEffect, useRef, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import { CommandStream, type Start } from '../api/stream';
import type { Exit, Sandbox } from '../api/types';
import { TERMINAL_SCROLLBACK_LINES } from '../limits';
import { formatBytes, formatExit } from '../pure/format';
import { allowed, STATE_LOOKS } from '../pure/states';
import { useSession } from '../state/session';
import { Button } from './parts';
import { ProblemHere } from './problems';

type Shell =
  | { kind: 'none' }
  | { kind: 'opening' }
  | { kind: 'open' }
  | { kind: 'ended'; exit: Exit }
  | { kind: 'broken'; failure: Failure; place: { pid: number; offset: number } | null };

export function TerminalPanel({ sandbox, active }: { sandbox: Sandbox; active: boolean }) {
  const { mayWrite } = useSession();
  const box = useRef<HTMLDivElement>(null);
  const { shell, open, leave, fit, focus } = useShell(sandbox.id, box);
  const runs = allowed(sandbox.state).exec && mayWrite;

  // A first visit opens a shell; a sandbox that runs again takes up the one that its pause had cut off.
  useEffect(() => {
    if (!active || !runs) return;
    if (shell.kind === 'none') open();
  }, [active, runs]);
  useEffect(() => {
    if (runs && shell.kind === 'broken' && shell.place) open(shell.place);
  }, [runs]);
  useEffect(() => {
    if (active) fit();
  }, [active]);

  const closed = shell.kind === 'ended' || shell.kind === 'broken' || shell.kind === 'none';
  return (
    <div class="terminal-panel">
      <div class="line">
        <span class="grow" data-testid="terminal-state" data-state={shell.kind} role="status">
          {shellText(shell, sandbox, runs)}
        </span>
        {shell.kind === 'broken' && shell.place && (
          <Button testid="terminal-reattach" enabled={runs} onPress={() => shell.place && open(shell.place)}>
            Connect again
          </Button>
        )}
        {closed && (
          <Button testid="terminal-open" enabled={runs} onPress={() => open()}>
            New shell
          </Button>
        )}
        {shell.kind === 'open' && (
          <Button testid="terminal-close" onPress={leave} title="Leaves the shell">
            Close
          </Button>
        )}
      </div>
      <ProblemHere what="The terminal" failure={shell.kind === 'broken' ? shell.failure : null} />
      <div class="terminal-frame" onClick={focus}>
        <div ref={box} class="terminal" data-testid="terminal" />
      </div>
      <p class="field-hint">
        The Tab key goes to the shell. <kbd>F6</kbd> leaves the terminal.
      </p>
    </div>
  );
}

/** The screen and the stream behind it. */
function useShell(sandbox: string, box: { current: HTMLDivElement | null }) {
  const { client } = useSession();
  const [shell, setShell] = useState<Shell>({ kind: 'none' });
  const screen = useRef<Screen | null>(null);
  const stream = useRef<CommandStream | null>(null);

  useEffect(() => {
    if (!box.current) return;
    const made = new Screen(box.current, {
      typed: (bytes) => stream.current?.input(bytes),
      resized: (cols, rows) => stream.current?.resize(cols, rows),
    });
    screen.current = made;
    return () => {
      stream.current?.leave();
      made.dispose();
    };
  }, []);

  const open = (place?: { pid: number; offset: number }) => {
    const { terminal } = screen.current ?? {};
    if (!terminal) return;
    stream.current?.leave();
    screen.current?.fit();
    if (!place) terminal.reset();
    setShell({ kind: 'opening' });
    const { cols, rows } = terminal;
    const start: Start = place ? { kind: 'attach', ...place } : { kind: 'pty', cols, rows };
    const opened: CommandStream = new CommandStream(client, sandbox, start, {
      started: () => {
        setShell({ kind: 'open' });
        opened.resize(terminal.cols, terminal.rows);
        if (!walksOverTabs()) terminal.focus();
      },
      output: (_, bytes) => terminal.write(bytes),
      gap: (bytes) => terminal.write(`\r\n[${formatBytes(bytes)} of output are not kept any more]\r\n`),
      ended: (exit) => setShell({ kind: 'ended', exit }),
      failed: (failure) => setShell({ kind: 'broken', failure, place: null }),
      lost: (failure) => setShell({ kind: 'broken', failure, place: opened.place }),
    });
    stream.current = opened;
  };

  const leave = () => {
    stream.current?.leave();
    stream.current = null;
    setShell({ kind: 'none' });
  };

  return { shell, open, leave, fit: () => screen.current?.fit(), focus: () => screen.current?.terminal.focus() };
}

interface ScreenHandlers {
  typed: (bytes: Uint8Array<ArrayBuffer>) => void;
  resized: (cols: number, rows: number) => void;
}

/** xterm in an element: as large as that, in the page's colours, and with a way out for the keyboard. */
class Screen {
  readonly terminal: Terminal;
  readonly #fit = new FitAddon();
  readonly #element: HTMLElement;
  readonly #observer: ResizeObserver;
  readonly #dark = matchMedia('(prefers-color-scheme: dark)');

  constructor(element: HTMLElement, handlers: ScreenHandlers) {
    this.#element = element;
    this.terminal = new Terminal({
      fontFamily: getComputedStyle(element).fontFamily,
      fontSize: 13,
      minimumContrastRatio: 4.5,
      scrollback: TERMINAL_SCROLLBACK_LINES,
      cursorBlink: !matchMedia('(prefers-reduced-motion: reduce)').matches,
      theme: themeOf(element),
    });
    this.terminal.loadAddon(this.#fit);
    this.terminal.open(element);
    this.terminal.onData((text) => handlers.typed(new TextEncoder().encode(text)));
    this.terminal.onBinary((text) => handlers.typed(Uint8Array.from(text, (char) => char.charCodeAt(0))));
    this.terminal.onResize(({ cols, rows }) => handlers.resized(cols, rows));
    this.terminal.attachCustomKeyEventHandler((event) => this.#staysInside(event));
    this.#observer = new ResizeObserver(() => this.fit());
    this.#observer.observe(element);
    this.#dark.addEventListener('change', this.#recolour);
  }

  /** A hidden element has no size to fit. */
  fit(): void {
    if (this.#element.clientWidth > 0) this.#fit.fit();
  }

  dispose(): void {
    this.#dark.removeEventListener('change', this.#recolour);
    this.#observer.disconnect();
    this.terminal.dispose();
  }

  readonly #recolour = (): void => {
    this.terminal.options.theme = themeOf(this.#element);
  };

  #staysInside(event: KeyboardEvent): boolean {
    if (event.key !== 'F6') return true;
    if (event.type === 'keydown') document.querySelector<HTMLElement>('[data-testid="tab-terminal"]')?.focus();
    event.preventDefault();
    return false;
  }
}

/** Whoever goes along the tabs by the arrow keys would be caught in here. */
function walksOverTabs(): boolean {
  return document.activeElement?.matches('[role="tab"]:focus-visible') ?? false;
}

function themeOf(element: HTMLElement): ITheme {
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  return {
    background: colour('--screen'),
    foreground: colour('--screen-text'),
    cursor: colour('--screen-text'),
    selectionBackground: colour('--screen-selection'),
  };
}

function shellText(shell: Shell, sandbox: Sandbox, runs: boolean): string {
  switch (shell.kind) {
    case 'none':
      return runs ? 'No shell is open.' : `It is ${STATE_LOOKS[sandbox.state].label}, or this key may not: no shell can be opened.`;
    case 'opening':
      return 'Opening a shell…';
    case 'open':
      return runs ? '● connected' : `The sandbox is ${STATE_LOOKS[sandbox.state].label}.`;
    case 'ended':
      return `The shell ${formatExit(shell.exit)}.`;
    case 'broken':
      return '✕ not connected';
  }
}
