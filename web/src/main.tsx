// Where the test page begins.

import '@xterm/xterm/css/xterm.css';
import './style/index.css';
import { render } from 'preact';
import { App } from './ui/app';

// A file that is dropped beside its place must not replace the page.
for (const name of ['dragover', 'drop']) window.addEventListener(name, (event) => event.preventDefault());

const page = document.getElementById('page');
if (page) render(<App />, page);
