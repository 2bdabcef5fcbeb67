// One key's time on this page: its client, the live list of sandboxes, what happened, what was asked and how long it took,
// and what went wrong. Begins when a key is accepted, ends when it is forgotten; nothing of it outlives that.

import { createContext } from 'preact';
import { useContext } from 'preact/hooks';
import { Client } from '../api/client';
import { type Connection, EventFeed } from '../api/events';
import { Failure } from '../api/failure';
import type { Gone, Key, Sandbox, Timing } from '../api/types';
import { JOURNAL_ENTRIES_MAX, PROBLEMS_MAX, TIMINGS_MAX } from '../limits';
import { describeChange } from '../pure/changes';
import { Store } from './store';

export interface JournalEntry {
  id: number;
  unix_ms: number;
  sandbox: string;
  text: string;
  /** Seen on the event stream, or asked for on this page. */
  source: 'seen' | 'asked';
}

/** Something that was asked of the server on this page, and how long it took. */
export interface Asked {
  id: number;
  unix_ms: number;
  what: string;
  sandbox: string | null;
  /** As this page saw it, from asking to the answer. */
  wall_ms: number;
  timings: Timing[];
  failed: boolean;
}

export interface Problem {
  id: number;
  what: string;
  failure: Failure;
}

export interface Ask<T> {
  /** A noun: it heads the timings and the error, if there is one. */
  what: string;
  sandbox: string | null;
  act: (client: Client) => Promise<T>;
  /** Where the failure is shown instead of at the top of the page; for dialogs. */
  failed?: (failure: Failure) => void;
}

export class Session {
  readonly client: Client;
  readonly key: Key;
  readonly sandboxes = new Store<ReadonlyMap<string, Sandbox>>(new Map());
  readonly gone = new Store<ReadonlyMap<string, Gone>>(new Map());
  readonly connection = new Store<Connection>({ kind: 'connecting' });
  readonly loaded = new Store(false);
  readonly journal = new Store<readonly JournalEntry[]>([]);
  readonly asked = new Store<readonly Asked[]>([]);
  readonly problems = new Store<readonly Problem[]>([]);
  /** Said once, politely, to those who do not see the page. */
  readonly notice = new Store('');
  readonly #feed: EventFeed;
  #nextId = 1;

  constructor(client: Client, key: Key) {
    this.client = client;
    this.key = key;
    this.#feed = new EventFeed(client, {
      sandbox: (sandbox) => this.#see(sandbox),
      gone: (gone) => this.#lose(gone),
      complete: (present) => this.#complete(present),
      connection: (connection) => this.#connected(connection),
    });
    void this.#feed.run();
    window.addEventListener('online', this.retryNow);
    window.addEventListener('unhandledrejection', this.#unforeseen);
  }

  /** Keys of scope `read` may look and nothing else. */
  get mayWrite(): boolean {
    return this.key.scope !== 'read';
  }

  readonly retryNow = (): void => this.#feed.retryNow();

  end(): void {
    this.#feed.end();
    window.removeEventListener('online', this.retryNow);
    window.removeEventListener('unhandledrejection', this.#unforeseen);
  }

  /** Asks the server for something: measures it, notes it, and shows what goes wrong. `undefined`: it failed. */
  async ask<T>(ask: Ask<T>): Promise<T | undefined> {
    const begun = performance.now();
    try {
      const answer = await ask.act(this.client);
      this.#answered(ask, performance.now() - begun, answer);
      return answer;
    } catch (thrown) {
      this.#refused(ask, performance.now() - begun, Failure.from(thrown));
      return undefined;
    }
  }

  report(what: string, thrown: unknown): void {
    const problem = { id: this.#id(), what, failure: Failure.from(thrown) };
    this.problems.update((problems) => [problem, ...problems].slice(0, PROBLEMS_MAX));
  }

  /** A fault of the page itself is shown like any other. */
  readonly #unforeseen = (event: PromiseRejectionEvent): void => this.report('This page', event.reason);

  dismiss(id: number): void {
    this.problems.update((problems) => problems.filter((problem) => problem.id !== id));
  }

  #answered(ask: Ask<unknown>, wall_ms: number, answer: unknown): void {
    const { sandbox, timings } = partsOf(answer);
    if (sandbox && sandbox.state !== 'destroying') this.#see(sandbox);
    const about = ask.sandbox ?? sandbox?.id ?? null;
    this.#note({ what: ask.what, sandbox: about, wall_ms, timings, failed: false });
    if (about) this.#write(about, `${ask.what}: done`, 'asked');
    this.notice.set(`${ask.what}${about ? ` of ${about}` : ''}: done`);
  }

  #refused(ask: Ask<unknown>, wall_ms: number, failure: Failure): void {
    this.#note({ what: ask.what, sandbox: ask.sandbox, wall_ms, timings: [], failed: true });
    if (ask.sandbox) this.#write(ask.sandbox, `${ask.what}: failed (${failure.code})`, 'asked');
    if (ask.failed) ask.failed(failure);
    else this.report(ask.sandbox ? `${ask.what} of ${ask.sandbox}` : ask.what, failure);
  }

  #note(asked: Omit<Asked, 'id' | 'unix_ms'>): void {
    const entry = { ...asked, id: this.#id(), unix_ms: Date.now() };
    this.asked.update((all) => [entry, ...all].slice(0, TIMINGS_MAX));
  }

  #write(sandbox: string, text: string, source: JournalEntry['source']): void {
    const entry = { id: this.#id(), unix_ms: Date.now(), sandbox, text, source };
    this.journal.update((all) => [entry, ...all].slice(0, JOURNAL_ENTRIES_MAX));
  }

  /** Answers and events may overtake one another; the higher revision is the later truth. */
  #see(sandbox: Sandbox): void {
    const known = this.sandboxes.get().get(sandbox.id);
    if ((known && known.revision > sandbox.revision) || this.gone.get().has(sandbox.id)) return;
    for (const text of describeChange(known, sandbox)) this.#write(sandbox.id, text, 'seen');
    this.sandboxes.update((all) => new Map(all).set(sandbox.id, sandbox));
  }

  #lose(gone: Gone): void {
    this.gone.update((all) => new Map(all).set(gone.id, gone));
    this.#write(gone.id, `gone: ${gone.why}`, 'seen');
    this.#forget([gone.id]);
  }

  /** What is missing is not noted as gone: it may be younger than the stream, which will name it yet. */
  #complete(present: ReadonlySet<string>): void {
    const missing = [...this.sandboxes.get().keys()].filter((id) => !present.has(id));
    for (const id of missing) this.#write(id, 'not here any more: it ended while this page was not connected', 'seen');
    this.#forget(missing);
    this.loaded.set(true);
  }

  #forget(ids: readonly string[]): void {
    this.sandboxes.update((all) => {
      const left = new Map(all);
      for (const id of ids) left.delete(id);
      return left;
    });
  }

  #connected(connection: Connection): void {
    if (connection.kind !== this.connection.get().kind) this.notice.set(NOTICES[connection.kind]);
    this.connection.set(connection);
    if (connection.kind === 'refused') this.report('Live list', connection.why);
  }

  #id(): number {
    const id = this.#nextId;
    this.#nextId += 1;
    return id;
  }
}

const NOTICES: Readonly<Record<Connection['kind'], string>> = {
  connecting: '',
  live: 'The list is live',
  waiting: 'The list is not live',
  refused: 'The list is not live',
};

/** Answers are of several kinds; what they share is a sandbox, timings, or neither. */
function partsOf(answer: unknown): { sandbox: Sandbox | null; timings: Timing[] } {
  if (typeof answer !== 'object' || answer === null) return { sandbox: null, timings: [] };
  if ('state' in answer && 'revision' in answer) return { sandbox: answer as Sandbox, timings: [] };
  const { sandbox, timings } = answer as { sandbox?: unknown; timings?: Timing[] };
  // A snapshot's `sandbox` is an id.
  const isSandbox = typeof sandbox === 'object' && sandbox !== null;
  return { sandbox: isSandbox ? (sandbox as Sandbox) : null, timings: timings ?? [] };
}

const Current = createContext<Session | null>(null);
export const SessionProvider = Current.Provider;

export function useSession(): Session {
  const session = useContext(Current);
  if (!session) throw new Error('used outside of a session');
  return session;
}
