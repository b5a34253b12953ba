// An answer's text, coloured token by token. One stop of the tab key; arrows walk through the tokens.

import { Component } from "preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Token } from "./answer";
import { measured, nats, shade, signed, type Measure } from "./numbers";

interface Props {
  name: string;
  tokens: Token[];
  measure: Measure;
  selected: number | null;
  differs: number | null;
  onSelect: (index: number | null, byPointer: boolean) => void;
}

export function Tokens({ name, tokens, measure, selected, differs, onSelect }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const begins = useSections(box, tokens);
  const last = tokens.length - 1;
  const id = (index: number) => `${name}-${index}`;
  const go = useCallback((index: number) => onSelect(Math.max(0, Math.min(index, last)), false), [last, onSelect]);
  useEffect(() => {
    if (selected !== null) document.getElementById(id(selected))?.scrollIntoView({ block: "nearest" });
  }, [selected]);
  const onKeyDown = (event: KeyboardEvent) => {
    const at = selected ?? -1;
    const moves: Record<string, () => void> = {
      ArrowRight: () => go(at + 1),
      ArrowLeft: () => go(at - 1),
      ArrowDown: () => go(at + 10),
      ArrowUp: () => go(at - 10),
      Home: () => go(0),
      End: () => go(last),
      Escape: () => onSelect(null, false),
    };
    const move = moves[event.key];
    if (!move || last < 0) return;
    event.preventDefault();
    move();
  };
  const onClick = (event: MouseEvent) => {
    const index = (event.target as HTMLElement).closest<HTMLElement>("[data-i]")?.dataset["i"];
    if (index !== undefined) onSelect(Number(index), true);
  };
  return (
    <div
      ref={box}
      class="tokens"
      role="listbox"
      tabIndex={0}
      aria-label={`Tokens of answer ${name}`}
      aria-activedescendant={selected === null ? undefined : id(selected)}
      onKeyDown={onKeyDown}
      onClick={onClick}
    >
      {begins.map((begin, number) => {
        const end = begins[number + 1] ?? tokens.length;
        const inside = (index: number | null) => (index !== null && index >= begin && index < end ? index : null);
        return (
          <Section
            key={begin}
            name={name}
            begin={begin}
            end={end}
            tokens={tokens}
            measure={measure}
            selected={inside(selected)}
            differs={inside(differs)}
          />
        );
      })}
    </div>
  );
}

const SECTION = 48; // tokens, at least

/**
 * Where the text is cut into sections: at the begin of a line. Nothing moves so, and what is written at the end lays out
 * and paints the last section alone, however long the answer is. Of another width, lines begin elsewhere.
 */
function useSections(box: { current: HTMLDivElement | null }, tokens: Token[]): number[] {
  const [begins, setBegins] = useState([0]);
  useEffect(() => {
    let width: number | null = null;
    const observer = new ResizeObserver(([entry]) => {
      const now = entry!.contentRect.width;
      if (width !== null && width !== now) setBegins([0]);
      width = now;
    });
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    const open = begins.at(-1)!;
    if (tokens.length - open < 2 * SECTION) return;
    const more = lineBegins(box.current!.lastElementChild!, tokens, open);
    if (more.length) setBegins([...begins, ...more]);
  }, [tokens, begins]);
  return begins;
}

/** Tokens of the last section, which begins with `open`, that begin a line: each `SECTION` or more behind the one before. */
function lineBegins(section: Element, tokens: Token[], open: number): number[] {
  const lines = (i: number) => [...section.children[i - open]!.getClientRects()];
  const found: number[] = [];
  for (let i = open + SECTION; i < tokens.length; i++) {
    if (i - (found.at(-1) ?? open) < SECTION || !/^ ?\S/.test(tokens[i]!.text)) continue;
    const here = lines(i);
    const broken = here.length > (tokens[i]!.text.startsWith(" ") ? 2 : 1); // a space may hang at the line before
    if (!broken && here.at(-1)!.top >= lines(i - 1).at(-1)!.bottom - 2) found.push(i);
  }
  return found;
}

interface SectionProps {
  name: string;
  begin: number;
  end: number;
  tokens: Token[];
  measure: Measure;
  selected: number | null;
  differs: number | null;
}

class Section extends Component<SectionProps> {
  override shouldComponentUpdate(next: SectionProps): boolean {
    const { end, tokens, measure, selected, differs } = this.props;
    return (
      next.end !== end ||
      next.tokens[end - 1] !== tokens[end - 1] || // what is written is added to the last token alone
      next.measure !== measure ||
      next.selected !== selected ||
      next.differs !== differs
    );
  }

  override render({ name, begin, end, tokens, measure, selected, differs }: SectionProps) {
    const hangs = begin > 0 && tokens[begin]!.text.startsWith(" ") && !tokens[begin - 1]!.text.endsWith("\n");
    return (
      <span class={hangs ? "section hangs" : "section"} role="presentation">
        {tokens.slice(begin, end).map((token, i) => {
          const index = begin + i;
          const value = measured(token.trace, measure);
          const classes = [
            `t s${shade(value)}`,
            token.trace.argmax_moved && "moved",
            index === differs && "differs",
            !token.text && "mute",
            token.thought && "thought",
          ];
          return (
            <span
              key={index}
              id={`${name}-${index}`}
              data-i={index}
              role="option"
              aria-selected={index === selected}
              class={classes.filter(Boolean).join(" ")}
              title={title(token, value, measure)}
            >
              {token.text || token.trace.token}
            </span>
          );
        })}
      </span>
    );
  }
}

function title({ trace }: Token, value: number | null, measure: Measure): string {
  const said = value === null ? "not a sum" : `${measure.of === "kl" ? nats(value) : signed(value)} nats`;
  const moved = trace.argmax_moved
    ? `; the base would have said ${JSON.stringify(trace.top.base[0]?.token ?? "another token")}`
    : "";
  return `${JSON.stringify(trace.token)}: ${said}${moved}`;
}
