// Builds what the server carries into dist/: two pages, and beneath dist/assets/ what they load.
// With --tests: only the unit tests, into test-build/, for node's own test runner.
// Names are fixed (no hashes): the server embeds them and sends an ETag.

import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { build } from 'esbuild';

const shared = {
  bundle: true,
  target: 'es2022',
  legalComments: 'none', // all in LICENSES.txt
  logLevel: 'warning',
};

// What the bundles hold of others' work, and the terms that have to come with it.
const LICENSES = [
  'preact/LICENSE',
  '@xterm/xterm/LICENSE',
  '@xterm/addon-fit/LICENSE',
  'swagger-ui-dist/NOTICE',
  'swagger-ui-dist/LICENSE',
  'swagger-ui-dist/swagger-ui-bundle.js.LICENSE.txt',
];

if (process.argv.includes('--tests')) await buildTests();
else await buildPages();

async function buildPages() {
  rmSync('dist', { recursive: true, force: true });
  mkdirSync('dist/assets', { recursive: true });
  await build({
    ...shared,
    entryPoints: { test: 'src/main.tsx', docs: 'src/docs/main.ts' },
    outdir: 'dist/assets',
    format: 'esm',
    minify: true,
    jsx: 'automatic',
    jsxImportSource: 'preact',
    // What node's libraries expect of their surroundings, for those that are bundled for a browser.
    define: { global: 'globalThis', 'process.env.NODE_ENV': '"production"' },
  });
  for (const page of ['test.html', 'docs.html']) cpSync(`src/${page}`, `dist/${page}`);
  cpSync('src/favicon.svg', 'dist/assets/favicon.svg');
  const licenses = LICENSES.map((name) => `== ${name}\n\n${readFileSync(`node_modules/${name}`, 'utf8')}`);
  writeFileSync('dist/assets/LICENSES.txt', licenses.join('\n\n'));
}

async function buildTests() {
  rmSync('test-build', { recursive: true, force: true });
  const tests = readdirSync('test').filter((name) => name.endsWith('.test.ts'));
  await build({
    ...shared,
    entryPoints: tests.map((name) => `test/${name}`),
    outdir: 'test-build',
    outExtension: { '.js': '.mjs' },
    format: 'esm',
    platform: 'node',
    target: 'node20',
  });
}
