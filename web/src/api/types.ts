// The server's types, as /openapi.json describes them; only what the page reads.

export type SandboxState =
  | 'creating'
  | 'running'
  | 'pausing'
  | 'paused'
  | 'resuming'
  | 'capturing'
  | 'rolling_back'
  | 'stopped'
  | 'needs_repair'
  | 'destroying';

export type OnTimeout = 'pause' | 'destroy';

export interface Vmm {
  driver: string;
  version: string;
  accel: string;
}

export interface Sandbox {
  id: string;
  host: string;
  state: SandboxState;
  reason: string | null;
  revision: number;
  created_unix_ms: number;
  deadline_unix_ms: number | null;
  on_timeout: OnTimeout;
  template: string;
  kernel: string;
  vcpus: number;
  memory_mib: number;
  disk_mib: number;
  vmm: Vmm;
  storage: string;
  start: 'cold' | 'warm';
  metadata: Record<string, string>;
  tenant: string;
  auto_resume: boolean;
  traffic_token: string | null;
}

export interface Timing {
  step: string;
  ms: number;
}

export interface Changed {
  sandbox: Sandbox;
  timings: Timing[];
}

export interface Snapshot {
  id: string;
  name: string | null;
  created_unix_ms: number;
  sandbox: string;
  template: string;
  vcpus: number;
  memory_mib: number;
  disk_mib: number;
  has_memory: boolean;
  own_bytes: number;
  shared_bytes: number;
}

export interface Template {
  id: string;
  name: string;
  created: string;
  size_bytes: number;
  warm: { key: string; vcpus: number; memory_mib: number; disk_mib: number }[];
}

export interface ErrorBody {
  code: string;
  message: string;
  remedy: string | null;
}

export interface Operation {
  id: string;
  kind: string;
  state: 'running' | 'succeeded' | 'failed';
  created_unix_ms: number;
  ended_unix_ms: number | null;
  progress: string[];
  sandbox: string | null;
  template: string | null;
  error: ErrorBody | null;
}

export interface Bytes {
  encoding: 'utf8' | 'base64';
  data: string;
  truncated: boolean;
}

export type Exit =
  | { kind: 'exited'; code: number }
  | { kind: 'signalled'; signal: number }
  | { kind: 'timed_out' }
  | { kind: 'unknown' };

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

export type Scope = 'read' | 'write' | 'admin';

export interface Key {
  id: string;
  name: string | null;
  prefix: string;
  scope: Scope;
  tenant: string;
}

export interface Host {
  host: string;
  version: string;
  cpus: number;
  memory_mib: number;
  memory_taken_mib: number;
  disk_free_bytes: number;
  disk_total_bytes: number;
  vmm: Vmm | string;
  storage: string;
}

export interface CreateRequest {
  template?: string;
  snapshot?: string;
  vcpus?: number;
  memory_mib?: number;
  disk_mib?: number;
  timeout_s?: number | null;
  on_timeout?: OnTimeout;
  env?: Record<string, string>;
  metadata?: Record<string, string>;
  cold?: boolean;
  auto_resume?: boolean;
  traffic_token?: boolean;
}

export interface ForkRequest {
  count: number;
  timeout_s?: number | null;
  metadata?: Record<string, string>;
}

export interface Forked {
  forks: { sandbox: Sandbox | null; error: ErrorBody | null }[];
  timings: Timing[];
}

export interface ExecRequest {
  command: string[];
  env?: Record<string, string>;
  workdir?: string;
  user?: string;
  timeout_s?: number;
  stdin?: boolean;
}

export interface RunningCommand {
  pid: number;
  tag: string | null;
  command: string[];
}

export interface FileEntry {
  name: string;
  path: string;
  type: 'file' | 'directory' | 'symlink' | 'other';
  size: number;
  mode: number;
  permissions: string;
  owner: string;
  group: string;
  modified_unix_ms: number | null;
  symlink_target: string | null;
}

export interface Sample {
  unix_ms: number;
  cpu_percent: number | null;
  memory_bytes: number | null;
  disk_own_bytes: number;
  disk_shared_bytes: number;
  network_rx_bytes: number | null;
  network_tx_bytes: number | null;
  /** What the guest says of itself; null at rest, and if it did not answer at once. */
  guest: GuestSample | null;
}

export interface GuestSample {
  unix_ms: number;
  cpus: number;
  /** Of all its CPUs together. */
  cpu_percent: number;
  memory_total_bytes: number;
  memory_used_bytes: number;
  disk_total_bytes: number;
  disk_used_bytes: number;
}

export interface PastCommand {
  pid: number;
  command: string[];
  started_unix_ms: number;
  ended_unix_ms: number | null;
  exit: Exit | null;
  output_bytes: number;
}

export interface Logs {
  console: Bytes;
  execs: PastCommand[];
}

export interface Gone {
  id: string;
  why: string;
  ended_unix_ms: number;
}
