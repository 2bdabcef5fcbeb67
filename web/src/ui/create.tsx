// Making a sandbox: the button, and the dialog behind it.

import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { Snapshot, Template } from '../api/types';
import { formatDuration, formatMib } from '../pure/format';
import { CREATE_FORM_DEFAULT, type CreateForm, type CreateProblems, createRequest } from '../pure/create_form';
import { useSession } from '../state/session';
import { BuildTemplate } from './build_template';
import { Cancel, Dialog, Submit } from './dialog';
import { Button, Field } from './parts';
import { ProblemHere } from './problems';

interface CreateButtonProps {
  testid: string;
  /** A snapshot's id: the dialog begins with it. */
  snapshot?: string;
  label?: string;
  children?: ComponentChildren;
  onCreated: (id: string) => void;
}

export function CreateButton({ testid, snapshot, label, children = 'New sandbox', onCreated }: CreateButtonProps) {
  const { mayWrite } = useSession();
  const [open, setOpen] = useState(false);
  return (
    <>
      <Button
        testid={testid}
        kind={snapshot ? 'plain' : 'primary'}
        enabled={mayWrite}
        title={mayWrite ? undefined : 'This key may only read'}
        {...(label ? { label } : {})}
        onPress={() => setOpen(true)}
      >
        {children}
      </Button>
      {open && <CreateDialog snapshot={snapshot ?? null} onClose={() => setOpen(false)} onCreated={onCreated} />}
    </>
  );
}

interface CreateDialogProps {
  snapshot: string | null;
  onClose: () => void;
  onCreated: (id: string) => void;
}

function CreateDialog({ snapshot, onClose, onCreated }: CreateDialogProps) {
  const session = useSession();
  const [form, setForm] = useState<CreateForm>({ ...CREATE_FORM_DEFAULT, source: snapshot ? 'snapshot' : 'template', snapshot: snapshot ?? '' });
  const [problems, setProblems] = useState<CreateProblems>({});
  const [failure, setFailure] = useState<Failure | null>(null);
  const [begun, setBegun] = useState<number | null>(null);
  const sources = useSources(setFailure);
  const idempotency = useIdempotencyKey();
  const open = useRef(true);
  useEffect(() => () => void (open.current = false), []);

  const set = <K extends keyof CreateForm>(field: K, value: CreateForm[K]) => setForm((before) => ({ ...before, [field]: value }));
  const chosen: CreateForm = { ...form, template: form.template || sources.preferred };

  const submit = async () => {
    const checked = createRequest(chosen);
    setProblems('problems' in checked ? checked.problems : {});
    if ('problems' in checked) return;
    setFailure(null);
    setBegun(Date.now());
    const key = idempotency.keyFor(JSON.stringify(checked.request));
    const created = await session.ask({
      what: 'Create',
      sandbox: null,
      act: (client) => client.create(checked.request, key),
      failed: (why) => {
        if (why.code !== 'unreachable') idempotency.renew();
        // Where the dialog was closed meanwhile, the page says it.
        if (open.current) setFailure(why);
        else session.report('Create', why);
      },
    });
    setBegun(null);
    if (!created) return;
    if (open.current) onCreated(created.sandbox.id);
    onClose();
  };

  return (
    <Dialog
      title="New sandbox"
      testid="create-dialog"
      wide
      onClose={onClose}
      onSubmit={submit}
      footer={
        <>
          <ProblemHere what="Create" failure={failure} />
          {begun !== null && <Progress begun_unix_ms={begun} />}
          <Cancel onPress={onClose}>{begun === null ? 'Cancel' : 'Close, it goes on'}</Cancel>
          <Submit testid="create-submit" busy={begun !== null}>
            {begun === null ? 'Create' : 'Creating…'}
          </Submit>
        </>
      }
    >
      <SourceFields form={chosen} problems={problems} set={set} sources={sources} />
      <SizeFields form={chosen} problems={problems} set={set} />
      <LifeFields form={chosen} problems={problems} set={set} />
      <TextFields form={chosen} problems={problems} set={set} />
    </Dialog>
  );
}

/** Seconds that count: that something is going on, and for how long. */
function Progress({ begun_unix_ms }: { begun_unix_ms: number }) {
  const [now, setNow] = useState(begun_unix_ms);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 100);
    return () => clearInterval(timer);
  }, []);
  return (
    <span class="creating" data-testid="create-progress">
      <progress aria-label="Creating" />
      <span class="mono">{((now - begun_unix_ms) / 1000).toFixed(1)} s</span>
    </span>
  );
}

interface PartProps {
  form: CreateForm;
  problems: CreateProblems;
  set: <K extends keyof CreateForm>(field: K, value: CreateForm[K]) => void;
}

function SourceFields({ form, problems, set, sources }: PartProps & { sources: Sources }) {
  const { templates, snapshots, reload } = sources;
  const fromTemplate = form.source === 'template';
  return (
    <fieldset>
      <legend>From</legend>
      <div class="choices">
        {(['template', 'snapshot'] as const).map((source) => (
          <label key={source} class="choice">
            <input type="radio" name="source" data-testid={`create-from-${source}`} checked={form.source === source} onChange={() => set('source', source)} />
            {source}
          </label>
        ))}
      </div>
      {fromTemplate && (
        <Field label="Template" problem={problems.template}>
          {(control) => (
            <select {...control} data-testid="create-template" value={form.template} onChange={(event) => set('template', event.currentTarget.value)}>
              {templates === null && <option value="">Looking…</option>}
              {templates?.length === 0 && <option value="">There is none yet</option>}
              {templates?.map((template) => (
                <option key={template.id} value={template.name}>
                  {templateText(template)}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      {fromTemplate && templates?.length === 0 && <BuildTemplate onBuilt={reload} />}
      {!fromTemplate && (
        <Field label="Snapshot" problem={problems.snapshot} hint="Its size is the snapshot’s.">
          {(control) => (
            <select {...control} data-testid="create-snapshot" value={form.snapshot} onChange={(event) => set('snapshot', event.currentTarget.value)}>
              <option value="">{snapshots === null ? 'Looking…' : snapshots.length === 0 ? 'There is none yet' : 'Choose one'}</option>
              {snapshots?.map((snapshot) => (
                <option key={snapshot.id} value={snapshot.id}>
                  {snapshotText(snapshot)}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
    </fieldset>
  );
}

function SizeFields({ form, problems, set }: PartProps) {
  if (form.source === 'snapshot') return null;
  return (
    <fieldset class="grid3">
      <legend>Size</legend>
      <NumberField label="vCPUs" field="vcpus" form={form} problems={problems} set={set} />
      <NumberField label="Memory, MiB" field="memory_mib" form={form} problems={problems} set={set} />
      <NumberField label="Disk, MiB" field="disk_mib" form={form} problems={problems} set={set} placeholder="as the template" />
    </fieldset>
  );
}

function LifeFields({ form, problems, set }: PartProps) {
  const seconds = Number(form.timeout_s);
  const hint = form.timeout_s.trim() === '' ? 'Empty: no end.' : seconds > 0 ? formatDuration(seconds) : undefined;
  return (
    <fieldset>
      <legend>Life</legend>
      <div class="grid2">
        <NumberField label="Time, s" field="timeout_s" form={form} problems={problems} set={set} hint={hint} placeholder="no end" />
        <Field label="When time is up">
          {(control) => (
            <select
              {...control}
              data-testid="create-on-timeout"
              value={form.on_timeout}
              onChange={(event) => set('on_timeout', event.currentTarget.value === 'pause' ? 'pause' : 'destroy')}
            >
              <option value="destroy">destroy it</option>
              <option value="pause">pause it</option>
            </select>
          )}
        </Field>
      </div>
      <div class="choices">
        <Check testid="create-auto-resume" checked={form.auto_resume} onChange={(on) => set('auto_resume', on)}>
          Resume by itself when it is used
        </Check>
        {form.source === 'template' && (
          <Check testid="create-cold" checked={form.cold} onChange={(on) => set('cold', on)}>
            Boot cold, even if a warm image is there
          </Check>
        )}
        <Check testid="create-traffic-token" checked={form.traffic_token} onChange={(on) => set('traffic_token', on)}>
          Ports need a token
        </Check>
      </div>
    </fieldset>
  );
}

function TextFields({ form, problems, set }: PartProps) {
  return (
    <fieldset class="grid2">
      <legend>Labels and environment</legend>
      <PairsField label="Labels" field="labels" placeholder={'project=demo\nowner=me'} form={form} problems={problems} set={set} />
      <PairsField label="Environment of its commands" field="env" placeholder="DEBUG=1" form={form} problems={problems} set={set} />
    </fieldset>
  );
}

interface NumberFieldProps extends PartProps {
  label: string;
  field: 'vcpus' | 'memory_mib' | 'disk_mib' | 'timeout_s';
  hint?: string | undefined;
  placeholder?: string;
}

function NumberField({ label, field, form, problems, set, hint, placeholder }: NumberFieldProps) {
  return (
    <Field label={label} problem={problems[field]} hint={hint}>
      {(control) => (
        <input
          {...control}
          data-testid={`create-${field.replaceAll('_', '-')}`}
          inputMode="numeric"
          autocomplete="off"
          placeholder={placeholder ?? ''}
          value={form[field]}
          onInput={(event) => set(field, event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

function PairsField({ label, field, placeholder, form, problems, set }: PartProps & { label: string; field: 'labels' | 'env'; placeholder: string }) {
  return (
    <Field label={label} problem={problems[field]} hint="NAME=value, one a line.">
      {(control) => (
        <textarea
          {...control}
          data-testid={`create-${field}`}
          class="mono"
          rows={3}
          spellcheck={false}
          placeholder={placeholder}
          value={form[field]}
          onInput={(event) => set(field, event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

export function Check({ testid, checked, onChange, children }: { testid: string; checked: boolean; onChange: (on: boolean) => void; children: ComponentChildren }) {
  return (
    <label class="choice">
      <input type="checkbox" data-testid={testid} checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      {children}
    </label>
  );
}

interface Sources {
  templates: Template[] | null;
  snapshots: Snapshot[] | null;
  /** The template that is chosen unless another is. */
  preferred: string;
  reload: () => void;
}

function useSources(onFailure: (failure: Failure) => void): Sources {
  const { client } = useSession();
  const [templates, setTemplates] = useState<Template[] | null>(null);
  const [snapshots, setSnapshots] = useState<Snapshot[] | null>(null);
  const load = () => {
    const failed = (thrown: unknown) => onFailure(Failure.from(thrown));
    client.templates().then(setTemplates, failed);
    client.snapshots().then(setSnapshots, failed);
  };
  useEffect(load, [client]);
  const preferred = templates?.find(({ name }) => name === 'minimal')?.name ?? templates?.[0]?.name ?? '';
  return { templates, snapshots, preferred, reload: load };
}

/** The same request sent again, after the network broke, must not make a second sandbox; another request must have another key. */
function useIdempotencyKey(): { keyFor: (body: string) => string; renew: () => void } {
  const last = useRef<{ body: string; key: string } | null>(null);
  return {
    keyFor: (body) => {
      if (last.current?.body !== body) last.current = { body, key: randomKey() };
      return last.current.key;
    },
    renew: () => {
      last.current = null;
    },
  };
}

/** `crypto.randomUUID` is there on secure origins alone; the page is also reached by plain HTTP. */
function randomKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

function templateText(template: Template): string {
  const warm = template.warm.length > 0 ? `, warm: ${template.warm.map((image) => `${image.vcpus} vCPU ${formatMib(image.memory_mib)}`).join(', ')}` : '';
  return `${template.name}${warm}`;
}

function snapshotText(snapshot: Snapshot): string {
  const memory = snapshot.has_memory ? 'with memory' : 'disk only';
  return `${snapshot.name ?? snapshot.id} · ${snapshot.vcpus} vCPU, ${formatMib(snapshot.memory_mib)}, ${memory}`;
}
