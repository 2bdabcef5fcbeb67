// The states of a sandbox: what each is called, which shape and colour it has, and what may be asked in it.
// The server decides what is allowed; this only keeps buttons from offering what it would refuse.

import type { SandboxState } from '../api/types';

export type Tone = 'good' | 'busy' | 'rest' | 'bad';

export interface StateLook {
  label: string;
  tone: Tone;
  /** SVG path in a box of 16 by 16; no two states share one. */
  shape: string;
}

export const STATE_LOOKS: Readonly<Record<SandboxState, StateLook>> = {
  creating: { label: 'creating', tone: 'busy', shape: 'M7 2h2v5h5v2H9v5H7V9H2V7h5z' },
  running: { label: 'running', tone: 'good', shape: 'M4 2l10 6-10 6z' },
  pausing: { label: 'pausing', tone: 'busy', shape: 'M3 2h3v12H3zM8 2l6 6-6 6z' },
  paused: { label: 'paused', tone: 'rest', shape: 'M3 2h4v12H3zM9 2h4v12H9z' },
  resuming: { label: 'resuming', tone: 'busy', shape: 'M2 2l6 6-6 6zM8 2l6 6-6 6z' },
  capturing: { label: 'capturing', tone: 'busy', shape: 'M8 1l7 7-7 7-7-7zM8 5L5 8l3 3 3-3z' },
  rolling_back: { label: 'rolling back', tone: 'busy', shape: 'M14 2L8 8l6 6zM8 2L2 8l6 6z' },
  stopped: { label: 'stopped', tone: 'rest', shape: 'M3 3h10v10H3z' },
  needs_repair: { label: 'needs repair', tone: 'bad', shape: 'M8 1l7 13H1zM7 6v4h2V6zM7 11v2h2v-2z' },
  destroying: { label: 'destroying', tone: 'bad', shape: 'M3 2l5 5 5-5 1 1-5 5 5 5-1 1-5-5-5 5-1-1 5-5-5-5z' },
};

export interface Allowed {
  exec: boolean;
  pause: boolean;
  resume: boolean;
  capture: boolean;
  rollback: boolean;
  timeout: boolean;
  repair: boolean;
  destroy: boolean;
}

export function allowed(state: SandboxState): Allowed {
  const running = state === 'running';
  const paused = state === 'paused';
  const stopped = state === 'stopped';
  return {
    exec: running,
    pause: running,
    resume: paused || stopped,
    capture: running || paused,
    rollback: running || paused || stopped,
    timeout: running || paused || stopped,
    repair: state === 'needs_repair',
    destroy: state !== 'destroying',
  };
}
