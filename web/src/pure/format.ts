// Numbers, times and ends of commands as words. Pure: whoever calls says what time it is.

import type { Bytes, Exit, Vmm } from '../api/types';

const MINUTE_S = 60;
const HOUR_S = 60 * MINUTE_S;
const DAY_S = 24 * HOUR_S;

/** `1.5 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : trim(value.toFixed(1))} ${units[unit]}`;
}

export function formatMib(mib: number): string {
  return formatBytes(mib * 1024 * 1024);
}

/** `850 µs`, `12.3 ms`, `1.42 s`. */
export function formatMs(ms: number): string {
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 100) return `${trim(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 10_000 ? `${(ms / 1000).toFixed(2)} s` : formatDuration(ms / 1000);
}

/** Two units at most: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function formatDuration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < MINUTE_S) return `${s} s`;
  if (s < HOUR_S) return two(s, MINUTE_S, 'min', 1, 's');
  if (s < DAY_S) return two(s, HOUR_S, 'h', MINUTE_S, 'min');
  return two(s, DAY_S, 'd', HOUR_S, 'h');
}

function two(s: number, large: number, largeUnit: string, small: number, smallUnit: string): string {
  const rest = Math.floor((s % large) / small);
  const head = `${Math.floor(s / large)} ${largeUnit}`;
  return rest > 0 ? `${head} ${rest} ${smallUnit}` : head;
}

/** What is left until `deadline`; a deadline that is over waits for the agent, it does not count below zero. */
export function formatTimeLeft(deadline_unix_ms: number | null, now_unix_ms: number): string {
  if (deadline_unix_ms === null) return 'no end';
  const left_s = (deadline_unix_ms - now_unix_ms) / 1000;
  return left_s <= 0 ? 'time is up' : `${formatDuration(left_s)} left`;
}

/** `14:03:22` on the same day, with the date otherwise; in the reader's own time zone. */
export function formatClock(unix_ms: number, now_unix_ms: number): string {
  const then = new Date(unix_ms);
  const clock = [then.getHours(), then.getMinutes(), then.getSeconds()].map(pad).join(':');
  const sameDay = then.toDateString() === new Date(now_unix_ms).toDateString();
  return sameDay ? clock : `${then.getFullYear()}-${pad(then.getMonth() + 1)}-${pad(then.getDate())} ${clock}`;
}

/** `exited with 0`. The number alone says too little beside signals and time limits. */
export function formatExit(exit: Exit): string {
  switch (exit.kind) {
    case 'exited':
      return `exited with ${exit.code}`;
    case 'signalled':
      return `ended by signal ${exit.signal}${signalName(exit.signal)}`;
    case 'timed_out':
      return 'ended: its time was up';
    case 'unknown':
      return 'ended, nobody saw how';
  }
}

const SIGNAL_NAMES: Readonly<Record<number, string>> = { 1: 'HUP', 2: 'INT', 3: 'QUIT', 6: 'ABRT', 9: 'KILL', 11: 'SEGV', 13: 'PIPE', 15: 'TERM' };

function signalName(signal: number): string {
  const name = SIGNAL_NAMES[signal];
  return name ? ` (SIG${name})` : '';
}

/** `Firecracker 1.12 · kvm`; the host route may answer the driver's name alone. */
export function formatVmm(vmm: Vmm | string): string {
  if (typeof vmm === 'string') return vmm;
  return [`${vmm.driver} ${vmm.version}`.trim(), vmm.accel].filter(Boolean).join(' · ');
}

/** The text of what may be bytes; what is no UTF-8 shows as replacement characters. */
export function bytesToText(bytes: Bytes): string {
  if (bytes.encoding === 'utf8') return bytes.data;
  const raw = Uint8Array.from(atob(bytes.data), (char) => char.charCodeAt(0));
  return new TextDecoder().decode(raw);
}

/** `1 fork`, `3 forks`. */
export function formatCount(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

function pad(number: number): string {
  return String(number).padStart(2, '0');
}

function trim(number: string): string {
  return number.replace(/\.0+$/, '');
}
