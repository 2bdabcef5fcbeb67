// A command's output: follows its end unless somebody scrolled up. What is an error's is marked by a word, not by colour alone.

import { useEffect, useRef } from 'preact/hooks';
import { formatBytes } from '../pure/format';
import type { Output } from '../pure/output';

export function OutputView({ output }: { output: Output }) {
  const box = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [output]);
  const onScroll = () => {
    const element = box.current;
    if (element) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
  };
  return (
    <>
      {output.dropped > 0 && <p class="note">The first {formatBytes(output.dropped)} are not shown any more.</p>}
      <pre ref={box} class="screen" data-testid="exec-output" tabIndex={0} aria-label="Output" onScroll={onScroll}>
        {output.stretches.map((stretch, index) => (
          <span key={index} class={`voice-${stretch.voice}`}>
            {stretch.text}
          </span>
        ))}
      </pre>
    </>
  );
}
