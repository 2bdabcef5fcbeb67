// Tabs by the WAI-ARIA pattern: one stop for the Tab key, arrows and Home and End between them.
// A panel is made when it is first visited and kept from then on, so that a terminal survives a look at the files.

import type { ComponentChildren } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';

export interface Tab {
  id: string;
  title: string;
  panel: (active: boolean) => ComponentChildren;
}

interface TabsProps {
  label: string;
  tabs: readonly Tab[];
  active: string;
  onChange: (id: string) => void;
}

export function Tabs({ label, tabs, active, onChange }: TabsProps) {
  const base = useId();
  const list = useRef<HTMLDivElement>(null);
  const [visited, setVisited] = useState<ReadonlySet<string>>(new Set([active]));
  useEffect(() => setVisited((before) => new Set(before).add(active)), [active]);

  const onKeyDown = (event: KeyboardEvent) => {
    const target = neighbour(tabs, active, event.key);
    if (!target) return;
    event.preventDefault();
    onChange(target);
    list.current?.querySelector<HTMLElement>(`[data-testid="tab-${target}"]`)?.focus();
  };

  return (
    <>
      <div role="tablist" aria-label={label} class="tablist" ref={list} onKeyDown={onKeyDown}>
        {tabs.map((tab) => (
          <button
            key={tab.id}
            type="button"
            role="tab"
            class="tab"
            id={`${base}-tab-${tab.id}`}
            data-testid={`tab-${tab.id}`}
            aria-selected={tab.id === active}
            aria-controls={`${base}-panel-${tab.id}`}
            tabIndex={tab.id === active ? 0 : -1}
            onClick={() => onChange(tab.id)}
          >
            {tab.title}
          </button>
        ))}
      </div>
      {tabs.map((tab) => (
        <section
          key={tab.id}
          role="tabpanel"
          class="panel"
          id={`${base}-panel-${tab.id}`}
          data-testid={`panel-${tab.id}`}
          aria-labelledby={`${base}-tab-${tab.id}`}
          hidden={tab.id !== active}
        >
          {(tab.id === active || visited.has(tab.id)) && tab.panel(tab.id === active)}
        </section>
      ))}
    </>
  );
}

function neighbour(tabs: readonly Tab[], active: string, key: string): string | undefined {
  const at = tabs.findIndex((tab) => tab.id === active);
  const last = tabs.length - 1;
  switch (key) {
    case 'ArrowRight':
      return tabs[at === last ? 0 : at + 1]?.id;
    case 'ArrowLeft':
      return tabs[at <= 0 ? last : at - 1]?.id;
    case 'Home':
      return tabs[0]?.id;
    case 'End':
      return tabs[last]?.id;
    default: // every other key is the browser's
      return undefined;
  }
}
