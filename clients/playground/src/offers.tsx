// What stands around the answers: the form of the question, examples, the conversation so far, the link.

import { useEffect, useState } from "preact/hooks";
import type { Example, Form, World } from "./api";
import { copyText } from "./copy";
import { NAMES, toLink, type State, type Voice } from "./state";

export function Forms({ form, onChange }: { form: Form; onChange: (form: Form) => void }) {
  return (
    <div class="row" role="group" aria-label="How it is asked">
      {(["chat", "completion"] as const).map((one) => (
        <button type="button" key={one} aria-pressed={one === form} onClick={() => one !== form && onChange(one)}>
          {one === "chat" ? "Chat" : "Completion"}
        </button>
      ))}
    </div>
  );
}

export function LinkButton({ state }: { state: State }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => setCopied(false), [state]);
  return (
    <button
      type="button"
      title="All that you set and asked is in the link; your key is not."
      onClick={async (event) => {
        const near = event.currentTarget.parentElement!;
        await copyText(`${location.origin}${location.pathname}#${toLink(state)}`, near);
        setCopied(true);
      }}
    >
      {copied ? "Link copied" : "Copy link"}
    </button>
  );
}

export function Examples({
  world,
  onOffer,
  onVoices,
}: {
  world: World;
  onOffer: (example: Example) => void;
  onVoices: (voices: Voice[]) => void;
}) {
  const named = world.cards.filter((card) => card.composition);
  if (world.examples.length) {
    return (
      <section class="examples" aria-label="Examples">
        <h2>Try one</h2>
        {world.examples.map((example) => (
          <button type="button" key={example.title} onClick={() => onOffer(example)}>
            <b>{example.title}</b>
            <span>{example.question}</span>
          </button>
        ))}
      </section>
    );
  }
  if (!named.length) return null;
  return (
    <section class="examples" aria-label="Named compositions">
      <h2>Compositions of this server</h2>
      {named.map((card) => (
        <button type="button" key={card.id} onClick={() => onVoices([{ model: card.id, composition: null }])}>
          <b>{card.id}</b>
          <span>{String(card.composition!["strategy"] ?? "compose")}</span>
        </button>
      ))}
    </section>
  );
}

export function Conversation({ state }: { state: State }) {
  const last = state.turns.length - 1;
  return (
    <div class="turns">
      {state.turns.map((turn, i) => (
        <div key={i}>
          <p class="asked">{turn.asked}</p>
          {i < last && (
            <div class={`columns n${state.voices.length}`}>
              {state.voices.map((_, column) => (
                <p key={column} class="answered">
                  <b>{NAMES[column]}</b> {turn.answers[column]}
                </p>
              ))}
            </div>
          )}
        </div>
      ))}
    </div>
  );
}
