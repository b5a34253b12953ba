// An answer's text, coloured token by token. One stop of the tab key; arrows walk through the tokens.

import { Component } from "preact";
import { useCallback, useEffect, useRef } from "preact/hooks";
import { BLOCK, type Answer, type Token } from "./answer";
import { measured, nats, shade, signed, type Measure } from "./numbers";

interface Props {
  name: string;
  answer: Answer;
  measure: Measure;
  selected: number | null;
  differs: number | null;
  onSelect: (index: number | null, byPointer: boolean) => void;
}

export function Tokens({ name, answer, measure, selected, differs, onSelect }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const last = answer.count - 1;
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
      {answer.blocks.map((block, number) => {
        const inside = (index: number | null) =>
          index !== null && Math.floor(index / BLOCK) === number ? index % BLOCK : null;
        return (
          <Block
            key={number}
            name={name}
            number={number}
            tokens={block}
            measure={measure}
            selected={inside(selected)}
            differs={inside(differs)}
          />
        );
      })}
    </div>
  );
}

interface BlockProps {
  name: string;
  number: number;
  tokens: Token[];
  measure: Measure;
  selected: number | null;
  differs: number | null;
}

class Block extends Component<BlockProps> {
  override shouldComponentUpdate(next: BlockProps): boolean {
    const { tokens, measure, selected, differs } = this.props;
    return next.tokens !== tokens || next.measure !== measure || next.selected !== selected || next.differs !== differs;
  }

  override render({ name, number, tokens, measure, selected, differs }: BlockProps) {
    return (
      <span class="block" role="presentation">
        {tokens.map((token, i) => {
          const index = number * BLOCK + i;
          const value = measured(token.trace, measure);
          const classes = [
            `t s${shade(value)}`,
            token.trace.argmax_moved && "moved",
            i === differs && "differs",
            !token.text && "mute",
            token.thought && "thought",
          ];
          return (
            <span
              key={i}
              id={`${name}-${index}`}
              data-i={index}
              role="option"
              aria-selected={i === selected}
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
