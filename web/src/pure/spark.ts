// Sparklines: values over time as the `d` of an SVG path, and what is said of them in words.

export interface Point {
  unix_ms: number;
  /** null: not known at this time; the line has a gap there. */
  value: number | null;
}

export interface Frame {
  from_unix_ms: number;
  to_unix_ms: number;
  /** The value at the upper edge. */
  top: number;
  width: number;
  height: number;
}

export function sparkLine(points: readonly Point[], frame: Frame): string {
  let path = '';
  let drawing = false;
  for (const point of points) {
    if (point.value === null) {
      drawing = false;
      continue;
    }
    path += `${drawing ? 'L' : 'M'}${round(x(point.unix_ms, frame))} ${round(y(point.value, frame))}`;
    drawing = true;
  }
  return path;
}

/** The area beneath the line, each stretch between gaps closed at the bottom. */
export function sparkArea(points: readonly Point[], frame: Frame): string {
  return stretches(points)
    .map((stretch) => {
      const first = stretch[0];
      const last = stretch[stretch.length - 1];
      if (!first || !last) return '';
      return `${sparkLine(stretch, frame)}L${round(x(last.unix_ms, frame))} ${frame.height}L${round(x(first.unix_ms, frame))} ${frame.height}Z`;
    })
    .join('');
}

/** A top edge that does not jump with each sample: the next 1, 2 or 5 times a power of `base`. */
export function niceTop(highest: number, base: 10 | 1024): number {
  if (highest <= 0) return 1;
  let unit = 1;
  while (unit * base <= highest) unit *= base;
  const steps = base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  return unit * (steps.find((step) => unit * step >= highest) ?? base);
}

export function highest(points: readonly Point[]): number | null {
  return points.reduce<number | null>((top, { value }) => (value === null ? top : Math.max(top ?? value, value)), null);
}

export function latest(points: readonly Point[]): number | null {
  return points[points.length - 1]?.value ?? null;
}

function stretches(points: readonly Point[]): Point[][] {
  const found: Point[][] = [[]];
  for (const point of points) {
    if (point.value === null) found.push([]);
    else found[found.length - 1]?.push(point);
  }
  return found;
}

function x(unix_ms: number, frame: Frame): number {
  return ((unix_ms - frame.from_unix_ms) / Math.max(1, frame.to_unix_ms - frame.from_unix_ms)) * frame.width;
}

function y(value: number, frame: Frame): number {
  return frame.height - (Math.min(Math.max(value, 0), frame.top) / frame.top) * frame.height;
}

function round(number: number): number {
  return Math.round(number * 10) / 10;
}
