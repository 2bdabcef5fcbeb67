// What is new about a sandbox between two looks at it, in words for the list of what happened.

import type { Sandbox } from '../api/types';
import { STATE_LOOKS } from './states';

/** Empty if nothing that a person would ask about has changed. */
export function describeChange(before: Sandbox | undefined, after: Sandbox): string[] {
  if (!before) return [`is here: ${label(after)}${because(after)}`];
  const news: string[] = [];
  if (before.state !== after.state) news.push(`${label(before)} → ${label(after)}${because(after)}`);
  else if (before.reason !== after.reason && after.reason) news.push(`reason: ${after.reason}`);
  if (before.deadline_unix_ms !== after.deadline_unix_ms) news.push(deadline(after));
  if (before.on_timeout !== after.on_timeout) news.push(`at its end: ${after.on_timeout}`);
  if (before.auto_resume !== after.auto_resume) news.push(`resumes by itself: ${after.auto_resume ? 'yes' : 'no'}`);
  return news;
}

function label(sandbox: Sandbox): string {
  return STATE_LOOKS[sandbox.state]?.label ?? sandbox.state;
}

function because(sandbox: Sandbox): string {
  return sandbox.reason ? ` (${sandbox.reason})` : '';
}

function deadline(sandbox: Sandbox): string {
  return sandbox.deadline_unix_ms === null ? 'no end any more' : `ends ${new Date(sandbox.deadline_unix_ms).toLocaleTimeString()}`;
}
