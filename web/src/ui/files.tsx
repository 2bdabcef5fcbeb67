// The files of a sandbox: one folder at a time, with what can be done to what is in it.

import type { ComponentChildren } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { FileEntry, Sandbox } from '../api/types';
import { formatBytes, formatClock } from '../pure/format';
import { baseName, crumbs, joinPath, nameProblem, normalPath, parentPath } from '../pure/paths';
import { allowed, STATE_LOOKS } from '../pure/states';
import { useNow } from '../state/clock';
import { askFor, confirm } from '../state/dialogs';
import { useSession } from '../state/session';
import { Button } from './parts';
import { ProblemHere } from './problems';
import { Uploads, useUploads } from './uploads';

interface Folder {
  path: string;
  entries: FileEntry[] | null;
  failure: Failure | null;
}

export function Files({ sandbox }: { sandbox: Sandbox }) {
  const session = useSession();
  const [folder, setFolder] = useState<Folder>({ path: '/', entries: null, failure: null });
  const runs = allowed(sandbox.state).exec;
  const { id } = sandbox;

  const open = async (path: string) => {
    setFolder((before) => ({ ...before, path, entries: before.path === path ? before.entries : null }));
    try {
      const { entries } = await session.client.listFiles(id, path);
      setFolder({ path, entries: entries.sort(foldersFirst), failure: null });
    } catch (thrown) {
      setFolder({ path, entries: null, failure: Failure.from(thrown) });
    }
  };
  const again = () => open(folder.path);
  const uploads = useUploads(id, again);

  useEffect(() => {
    if (runs) void again();
  }, [runs]);

  const mkdir = async () => {
    const name = await askFor({ title: 'New folder', text: `In ${folder.path}`, action: 'Make', input: { label: 'Name', value: '', problem: nameProblem } });
    if (name === null) return;
    await session.ask({ what: `New folder ${name}`, sandbox: id, act: (client) => client.mkdir(id, joinPath(folder.path, name)) });
    await again();
  };

  if (!runs) return <p class="note">It is {STATE_LOOKS[sandbox.state].label}; files need it to run.</p>;
  return (
    <div class="files">
      <Crumbs path={folder.path} onOpen={open} />
      <div class="line wrap" role="group" aria-label="In this folder">
        <UploadButton enabled={session.mayWrite} onFiles={(files) => uploads.send(files, folder.path)} />
        <Button testid="files-mkdir" enabled={session.mayWrite} onPress={mkdir}>
          New folder…
        </Button>
        <Button testid="files-refresh" onPress={again}>
          Refresh
        </Button>
        <GoTo key={folder.path} path={folder.path} onOpen={open} />
      </div>
      <ProblemHere what={`Looking into ${folder.path}`} failure={folder.failure} />
      <Uploads uploads={uploads} />
      <DropZone enabled={session.mayWrite} onFiles={(files) => uploads.send(files, folder.path)}>
        <Listing sandbox={sandbox} folder={folder} onOpen={open} onChanged={again} />
      </DropZone>
    </div>
  );
}

function Crumbs({ path, onOpen }: { path: string; onOpen: (path: string) => void }) {
  const steps = crumbs(path);
  return (
    <nav aria-label="Folder" class="crumbs mono" data-testid="files-crumbs" data-path={path}>
      <ol>
        {steps.map((step, index) => (
          <li key={step.path}>
            <button type="button" class="crumb" data-testid="files-crumb" aria-current={index === steps.length - 1 ? 'location' : undefined} onClick={() => onOpen(step.path)}>
              {step.name}
            </button>
          </li>
        ))}
      </ol>
    </nav>
  );
}

function GoTo({ path, onOpen }: { path: string; onOpen: (path: string) => void }) {
  const [typed, setTyped] = useState(path);
  const go = (event: Event) => {
    event.preventDefault();
    onOpen(normalPath(typed));
  };
  return (
    <form class="goto" onSubmit={go}>
      <input
        data-testid="files-path"
        class="mono"
        aria-label="Go to folder"
        autocomplete="off"
        spellcheck={false}
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
      />
      <button type="submit" class="button" data-testid="files-go">
        Go
      </button>
    </form>
  );
}

/** The input itself is what is pressed: it has the keyboard's focus and a name. */
function UploadButton({ enabled, onFiles }: { enabled: boolean; onFiles: (files: File[]) => void }) {
  return (
    <label class={enabled ? 'button upload' : 'button upload off'}>
      Upload…
      <input
        type="file"
        multiple
        class="sr-only"
        data-testid="files-upload"
        disabled={!enabled}
        onChange={(event) => {
          onFiles([...(event.currentTarget.files ?? [])]);
          event.currentTarget.value = '';
        }}
      />
    </label>
  );
}

function DropZone({ enabled, onFiles, children }: { enabled: boolean; onFiles: (files: File[]) => void; children: ComponentChildren }) {
  const [over, setOver] = useState(false);
  return (
    <div
      class={over ? 'drop over' : 'drop'}
      data-testid="files-drop"
      onDragOver={(event) => {
        if (!enabled) return;
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        if (enabled) onFiles([...(event.dataTransfer?.files ?? [])]);
      }}
    >
      {children}
      <p class="drop-hint">{over ? 'Let go to upload here' : 'Files can be dropped here.'}</p>
    </div>
  );
}

interface ListingProps {
  sandbox: Sandbox;
  folder: Folder;
  onOpen: (path: string) => void;
  onChanged: () => Promise<void>;
}

function Listing({ sandbox, folder, onOpen, onChanged }: ListingProps) {
  if (!folder.entries) return folder.failure ? null : <p class="muted">Looking…</p>;
  return (
    <table class="table files-table" data-testid="files-table">
      <caption class="sr-only">Files in {folder.path}</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col" class="number">
            Size
          </th>
          <th scope="col" class="wide-only">
            Mode
          </th>
          <th scope="col" class="wide-only">
            Owner
          </th>
          <th scope="col" class="wide-only">
            Changed
          </th>
          <th scope="col">
            <span class="sr-only">Actions</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {folder.path !== '/' && (
          <tr>
            <td colSpan={6}>
              <button type="button" class="file-name" data-testid="files-up" onClick={() => onOpen(parentPath(folder.path))}>
                <Glyph type="directory" /> <span class="mono">..</span>
                <span class="sr-only"> folder above</span>
              </button>
            </td>
          </tr>
        )}
        {folder.entries.map((entry) => (
          <Entry key={entry.path} sandbox={sandbox} entry={entry} onOpen={onOpen} onChanged={onChanged} />
        ))}
        {folder.entries.length === 0 && (
          <tr>
            <td colSpan={6} class="muted">
              Empty
            </td>
          </tr>
        )}
      </tbody>
    </table>
  );
}

function Entry({ sandbox, entry, onOpen, onChanged }: { sandbox: Sandbox; entry: FileEntry; onOpen: (path: string) => void; onChanged: () => Promise<void> }) {
  const session = useSession();
  const now = useNow();
  const { id } = sandbox;

  const download = async () => {
    const blob = await session.ask({ what: `Download ${entry.name}`, sandbox: id, act: (client) => client.download(id, entry.path) });
    if (blob) save(blob, entry.name);
  };
  const rename = async () => {
    const text = entry.path;
    const name = await askFor({ title: 'Rename', text, action: 'Rename', input: { label: 'New name', value: baseName(entry.path), problem: nameProblem } });
    if (name === null) return;
    await session.ask({ what: `Rename ${entry.name}`, sandbox: id, act: (client) => client.move(id, entry.path, joinPath(parentPath(entry.path), name)) });
    await onChanged();
  };
  const remove = async () => {
    const all = entry.type === 'directory' ? ' and everything in it' : '';
    if (!(await confirm({ title: 'Remove?', text: `${entry.path}${all} will be gone.`, action: 'Remove', dangerous: true }))) return;
    await session.ask({ what: `Remove ${entry.name}`, sandbox: id, act: (client) => client.remove(id, entry.path) });
    await onChanged();
  };

  return (
    <tr data-testid="files-row" data-name={entry.name} data-type={entry.type}>
      <td class="file-cell">
        {entry.type === 'file' || entry.type === 'other' ? (
          <span class="file-name plain">
            <Glyph type={entry.type} /> <span class="mono">{entry.name}</span>
          </span>
        ) : (
          <button type="button" class="file-name" data-testid="files-open" onClick={() => onOpen(entry.path)}>
            <Glyph type={entry.type} /> <span class="mono">{entry.name}</span>
            {entry.symlink_target && <span class="mono muted"> → {entry.symlink_target}</span>}
          </button>
        )}
      </td>
      <td class="number mono">{entry.type === 'file' ? formatBytes(entry.size) : ''}</td>
      <td class="mono wide-only">{entry.permissions}</td>
      <td class="mono wide-only">
        {entry.owner}:{entry.group}
      </td>
      <td class="mono wide-only">{entry.modified_unix_ms === null ? '' : formatClock(entry.modified_unix_ms, now)}</td>
      <td>
        <span class="row-actions">
          {(entry.type === 'file' || entry.type === 'symlink') && (
            <Button testid="files-download" kind="quiet" label={`Download ${entry.name}`} onPress={download}>
              Download
            </Button>
          )}
          <Button testid="files-rename" kind="quiet" enabled={session.mayWrite} label={`Rename ${entry.name}`} onPress={rename}>
            Rename
          </Button>
          <Button testid="files-remove" kind="quiet" enabled={session.mayWrite} label={`Remove ${entry.name}`} onPress={remove}>
            Remove
          </Button>
        </span>
      </td>
    </tr>
  );
}

const GLYPHS: Readonly<Record<FileEntry['type'], { shape: string; name: string }>> = {
  directory: { shape: 'M1 3h5l2 2h7v9H1z', name: 'folder' },
  file: { shape: 'M3 1h6l4 4v10H3zM9 2v3h3z', name: 'file' },
  symlink: { shape: 'M9 3h4v4l-1.5-1.5L7 10 6 9l4.5-4.5zM3 5h4v1H4v6h6V9h1v4H3z', name: 'link' },
  other: { shape: 'M8 1l7 7-7 7-7-7zM8 4L4 8l4 4 4-4z', name: 'special file' },
};

function Glyph({ type }: { type: FileEntry['type'] }) {
  const glyph = GLYPHS[type];
  return (
    <svg class={`glyph glyph-${type}`} viewBox="0 0 16 16" width="14" height="14" role="img" aria-label={glyph.name}>
      <path d={glyph.shape} fill-rule="evenodd" />
    </svg>
  );
}

function foldersFirst(a: FileEntry, b: FileEntry): number {
  const folder = Number(b.type === 'directory') - Number(a.type === 'directory');
  return folder || a.name.localeCompare(b.name);
}

function save(blob: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The download reads from it after this; a minute is more than it needs to begin.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
