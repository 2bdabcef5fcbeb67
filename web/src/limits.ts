// Every limit of the page, with its unit and the reason for it.

/** Characters of one command’s output kept on the page; with more text in one element a browser falls behind. */
export const OUTPUT_CHARS_MAX = 256 * 1024;

/** Output is gathered for so long, ms, before it is drawn: often enough to look live, seldom enough to keep up. */
export const OUTPUT_DRAW_MS = 80;

/** Bytes of one SSE message; a sandbox is far below, so more means that this is not our stream. */
export const SSE_MESSAGE_BYTES_MAX = 1024 * 1024;

/** Silence on the event stream, ms, after which it counts as lost; the server sends a comment every 15 s. */
export const SSE_SILENCE_MS_MAX = 40_000;

/** First and longest wait before connecting again, ms. */
export const RETRY_DELAY_MS_MIN = 500;
export const RETRY_DELAY_MS_MAX = 15_000;

/** Entries of what happened that are kept, over all sandboxes. */
export const JOURNAL_ENTRIES_MAX = 1_000;

/** Operations whose timings are kept, newest first. */
export const TIMINGS_MAX = 30;

/** Errors shown at once; the oldest makes room. */
export const PROBLEMS_MAX = 4;

/** Between two questions for metrics, ms: the agent takes one sample every 5 s. */
export const METRICS_POLL_MS = 5_000;

/** How much of the past the sparklines show, ms. */
export const METRICS_SPAN_MS = 15 * 60_000;

/** Between two questions for the console while it is followed, ms. */
export const LOGS_POLL_MS = 2_000;

/** Bytes of console asked for at a time: some 800 lines. */
export const LOGS_BYTES = 64 * 1024;

/** Between two questions for the host's load, ms. */
export const HOST_POLL_MS = 15_000;

/** Between two looks at an operation that goes on without us, ms. */
export const OPERATION_POLL_MS = 700;

/** Items asked for per page of a list, and pages read before the rest is left out: 5000 in all. */
export const PAGE_ITEMS = 500;
export const PAGES_MAX = 10;

/** Forks made by one request: the server's own bound. */
export const FORKS_MAX = 64;

/** Lines kept by the terminal above what is visible. */
export const TERMINAL_SCROLLBACK_LINES = 5_000;

/** Commands remembered for the arrow keys. */
export const COMMAND_HISTORY_MAX = 50;

/** Seconds a new sandbox may live unless something else is entered: enough to look around, not for ever. */
export const TIMEOUT_S_DEFAULT = 3_600;
