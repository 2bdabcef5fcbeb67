// Where the test page begins.

import '@xterm/xterm/css/xterm.css';
import './style/index.css';
import { render } from 'preact';
import { App } from './ui/app';

const page = document.getElementById('page');
if (page) render(<App />, page);
