// What is entered to make a sandbox, and the request it comes to. Says of each field what is wrong with it.

import type { CreateRequest, OnTimeout } from '../api/types';
import { TIMEOUT_S_DEFAULT } from '../limits';
import { type Typed, wholeNumber } from './numbers';
import { type Pairs, parsePairs } from './pairs';

export interface CreateForm {
  source: 'template' | 'snapshot';
  template: string;
  snapshot: string;
  vcpus: string;
  memory_mib: string;
  disk_mib: string;
  timeout_s: string;
  on_timeout: OnTimeout;
  auto_resume: boolean;
  cold: boolean;
  traffic_token: boolean;
  labels: string;
  env: string;
}

export type CreateProblems = Partial<Record<keyof CreateForm, string>>;

export const CREATE_FORM_DEFAULT: CreateForm = {
  source: 'template',
  template: '',
  snapshot: '',
  vcpus: '1',
  memory_mib: '256',
  disk_mib: '',
  timeout_s: String(TIMEOUT_S_DEFAULT),
  on_timeout: 'destroy',
  auto_resume: false,
  cold: false,
  traffic_token: false,
  labels: '',
  env: '',
};

/** A snapshot brings its own size and start, so those fields are left out of a request that names one. */
export function createRequest(form: CreateForm): { request: CreateRequest } | { problems: CreateProblems } {
  const problems: CreateProblems = {};
  const number = (field: 'vcpus' | 'memory_mib' | 'disk_mib' | 'timeout_s') => numberOf(wholeNumber(form[field], 1), field, problems);
  const request: CreateRequest = {
    timeout_s: number('timeout_s'),
    on_timeout: form.on_timeout,
    auto_resume: form.auto_resume,
    metadata: pairsOf(parsePairs(form.labels), 'labels', problems),
    env: pairsOf(parsePairs(form.env), 'env', problems),
  };
  if (form.traffic_token) request.traffic_token = true;
  if (form.source === 'snapshot') {
    if (form.snapshot === '') problems.snapshot = 'choose a snapshot';
    request.snapshot = form.snapshot;
  } else {
    if (form.template === '') problems.template = 'choose a template';
    request.template = form.template;
    if (form.cold) request.cold = true;
    addSize(request, number('vcpus'), number('memory_mib'), number('disk_mib'));
  }
  return Object.keys(problems).length > 0 ? { problems } : { request };
}

function addSize(request: CreateRequest, vcpus: number | null, memory_mib: number | null, disk_mib: number | null): void {
  if (vcpus !== null) request.vcpus = vcpus;
  if (memory_mib !== null) request.memory_mib = memory_mib;
  if (disk_mib !== null) request.disk_mib = disk_mib;
}

function numberOf(typed: Typed, field: keyof CreateForm, problems: CreateProblems): number | null {
  if ('number' in typed) return typed.number;
  problems[field] = typed.error;
  return null;
}

function pairsOf(parsed: Pairs, field: keyof CreateForm, problems: CreateProblems): Record<string, string> {
  if ('pairs' in parsed) return parsed.pairs;
  problems[field] = parsed.error;
  return {};
}
