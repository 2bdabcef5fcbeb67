// Absolute paths in a guest. Always `/`-separated, whatever the browser's own system uses.

export interface Crumb {
  name: string;
  path: string;
}

export function joinPath(folder: string, name: string): string {
  return folder.endsWith('/') ? folder + name : `${folder}/${name}`;
}

export function parentPath(path: string): string {
  const cut = path.replace(/\/+$/, '').lastIndexOf('/');
  return cut <= 0 ? '/' : path.slice(0, cut);
}

export function baseName(path: string): string {
  return path.replace(/\/+$/, '').split('/').pop() ?? '';
}

/** The folders from `/` down to `path` itself. */
export function crumbs(path: string): Crumb[] {
  const steps: Crumb[] = [{ name: '/', path: '/' }];
  let at = '';
  for (const name of path.split('/').filter(Boolean)) {
    at += `/${name}`;
    steps.push({ name, path: at });
  }
  return steps;
}

/** What somebody typed, as an absolute path without doubled slashes; `..` is left to the guest, which knows the links. */
export function normalPath(typed: string): string {
  const path = `/${typed.trim()}`.replace(/\/{2,}/g, '/');
  return path.length > 1 ? path.replace(/\/$/, '') : path;
}

/** Why `name` cannot name a file, or null if it can. */
export function nameProblem(name: string): string | null {
  if (name === '' || name === '.' || name === '..') return 'a name is needed';
  return name.includes('/') || name.includes('\0') ? 'a name has no slash' : null;
}
