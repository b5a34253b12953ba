// The question, and how it is sampled.

import type { Sampling, State } from "./state";

interface AskProps {
  state: State;
  busy: boolean;
  asked: boolean;
  answered: boolean;
  onChange: (part: Partial<State>) => void;
  onAsk: () => void;
  onStop: () => void;
}

export function Ask({ state, busy, asked, answered, onChange, onAsk, onStop }: AskProps) {
  const chat = state.form === "chat";
  const sampling = (part: Partial<Sampling>) => onChange({ sampling: { ...state.sampling, ...part } });
  return (
    <footer class="ask">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          onAsk();
        }}
      >
        <label for="draft" class="unseen">
          {chat ? "Message" : "Text to go on with"}
        </label>
        <textarea
          id="draft"
          rows={2}
          value={state.draft}
          placeholder={chat ? "Ask something" : "Begin a text"}
          onInput={(event) => onChange({ draft: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              onAsk();
            }
          }}
        />
        {busy ? (
          <button type="button" onClick={onStop}>
            Stop
          </button>
        ) : (
          <button class="main">
            {asked && !state.draft.trim() ? (answered ? "Again" : "Answer") : chat ? "Send" : "Go on"}
          </button>
        )}
      </form>
      <details>
        <summary>Sampling and traces</summary>
        <div class="row">
          <Number
            label="temperature"
            value={state.sampling.temperature}
            min={0}
            max={2}
            step={0.1}
            onChange={(temperature) => sampling({ temperature: temperature ?? 0 })}
          />
          <Number
            label="top_p"
            value={state.sampling.top_p}
            min={0.01}
            max={1}
            step={0.01}
            onChange={(top_p) => sampling({ top_p: top_p ?? 1 })}
          />
          <Number
            label="max_tokens"
            value={state.sampling.max_tokens}
            min={1}
            max={1000000}
            step={1}
            placeholder="what fits"
            onChange={(max_tokens) => sampling({ max_tokens })}
          />
          <Number
            label="seed"
            placeholder="none"
            value={state.sampling.seed}
            min={0}
            max={2 ** 31}
            step={1}
            onChange={(seed) => sampling({ seed })}
          />
          <Number
            label="alternatives"
            value={state.top}
            min={1}
            max={20}
            step={1}
            onChange={(top) => onChange({ top: top ?? 8 })}
          />
          {chat && (
            <span class="field wide">
              <label for="system">system message</label>
              <input
                id="system"
                type="text"
                value={state.system}
                onInput={(event) => onChange({ system: event.currentTarget.value })}
              />
            </span>
          )}
        </div>
      </details>
    </footer>
  );
}

interface NumberProps {
  label: string;
  value: number | null;
  min: number;
  max: number;
  step: number;
  placeholder?: string;
  onChange: (value: number | null) => void;
}

function Number({ label, value, min, max, step, placeholder, onChange }: NumberProps) {
  const id = `sampling-${label}`;
  return (
    <span class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        type="number"
        min={min}
        max={max}
        step={step}
        placeholder={placeholder}
        value={value ?? ""}
        onChange={(event) => {
          const typed = event.currentTarget.valueAsNumber;
          onChange(isNaN(typed) ? null : Math.min(max, Math.max(min, typed)));
        }}
      />
    </span>
  );
}
