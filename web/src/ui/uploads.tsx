// Uploads: one after the other, each with how far it has come.

import { useRef, useState } from 'preact/hooks';
import { formatBytes } from '../pure/format';
import { joinPath } from '../pure/paths';
import { useSession } from '../state/session';

interface Upload {
  id: number;
  path: string;
  size: number;
  sent: number;
  state: 'waiting' | 'sending' | 'done' | 'failed';
}

export interface UploadQueue {
  items: readonly Upload[];
  send: (files: File[], folder: string) => Promise<void>;
}

export function useUploads(sandbox: string, onDone: () => void): UploadQueue {
  const session = useSession();
  const [items, setItems] = useState<readonly Upload[]>([]);
  const nextId = useRef(1);
  const change = (id: number, part: Partial<Upload>) => setItems((all) => all.map((item) => (item.id === id ? { ...item, ...part } : item)));

  const one = async (file: File, upload: Upload) => {
    const sent = await session.ask({
      what: `Upload ${file.name}`,
      sandbox,
      act: async (client) => {
        change(upload.id, { state: 'sending' });
        await client.upload(sandbox, upload.path, file, (bytes) => change(upload.id, { sent: bytes }));
        return true;
      },
    });
    change(upload.id, sent ? { state: 'done', sent: file.size } : { state: 'failed' });
  };

  const send = async (files: File[], folder: string) => {
    const begun = files.map((file) => ({ id: nextId.current++, path: joinPath(folder, file.name), size: file.size, sent: 0, state: 'waiting' as const }));
    setItems((all) => [...all.filter(({ state }) => state === 'waiting' || state === 'sending'), ...begun]);
    for (const [index, file] of files.entries()) {
      const upload = begun[index];
      if (upload) await one(file, upload);
    }
    onDone();
  };

  return { items, send };
}

export function Uploads({ uploads }: { uploads: UploadQueue }) {
  if (uploads.items.length === 0) return null;
  return (
    <ul class="plain-list uploads" data-testid="files-uploads" aria-label="Uploads">
      {uploads.items.map((item) => (
        <li key={item.id} class="line" data-testid="files-upload-item" data-state={item.state}>
          <span class="mono cut">{item.path}</span>
          {item.state === 'sending' && <progress max={Math.max(1, item.size)} value={item.sent} aria-label={item.path} />}
          <span class="muted">
            {SIGNS[item.state]} {item.state}, {formatBytes(item.size)}
          </span>
        </li>
      ))}
    </ul>
  );
}

const SIGNS: Readonly<Record<Upload['state'], string>> = { waiting: '…', sending: '↑', done: '✓', failed: '✕' };
