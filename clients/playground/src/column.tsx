// One answer with its composition, and the legend of all of them.

import type { Answer } from "./answer";
import { compositionOf, type World } from "./api";
import { Composer } from "./compose";
import { SHIFT, type Measure } from "./numbers";
import type { Voice } from "./state";
import { Tokens } from "./tokens";

const STEPS = [-4, -3, -2, -1, 1, 2, 3, 4];
const SAID = ["−5", "−2", "−0.7", "−0.1", "0.1", "0.7", "2", "5"];

export function Legend({
  measure,
  roles,
  shown,
  differs,
  onChange,
}: {
  measure: Measure;
  roles: string[];
  shown: boolean;
  differs: boolean;
  onChange: (measure: Measure) => void;
}) {
  if (!shown) return null;
  const value = measure.of === "push" ? `push ${measure.role}` : measure.of;
  const choose = (text: string) =>
    onChange(text.startsWith("push ") ? { of: "push", role: text.slice(5) } : text === "kl" ? { of: "kl" } : SHIFT);
  return (
    <div class="legend">
      <label for="measure">Whose push</label>
      <select id="measure" value={value} onChange={(event) => choose(event.currentTarget.value)}>
        <option value="shift">all together (composed − base)</option>
        {roles.map((role) => (
          <option key={role} value={`push ${role}`}>
            {role}
          </option>
        ))}
        <option value="kl">the whole distribution (KL from the base)</option>
      </select>
      <span class="scale" aria-hidden="true">
        {STEPS.map((step, i) => (
          <span key={step} class={`t s${step}`}>
            {SAID[i]}
          </span>
        ))}{" "}
        nats
      </span>
      {measure.of !== "kl" && <span>orange was made likelier, blue less likely</span>}
      <span class="scale">
        <span class="t moved">underlined</span>: the base alone would have said another
      </span>
      {differs && (
        <span class="scale">
          <span class="t differs">framed</span> is the first that differs
        </span>
      )}
      <span>Press a token to see its voices.</span>
    </div>
  );
}

interface ColumnProps {
  name: string;
  alone: boolean;
  voice: Voice;
  world: World;
  answer: Answer | null;
  measure: Measure;
  selected: number | null;
  differs: number | null;
  waiting: boolean;
  busy: boolean;
  onVoice: (voice: Voice) => void;
  onSelect: (index: number | null, byPointer: boolean) => void;
  onBegin: () => void;
  onCopy: () => void;
  onRemove: () => void;
}

export function Column(props: ColumnProps) {
  const { name, alone, voice, world, answer, measure, selected, differs, waiting, busy } = props;
  const strategy = compositionOf(voice, world)?.["strategy"];
  return (
    <section class="column" aria-label={`Answer ${name}`}>
      <details class="setup" open={answer ? answer.status === "failed" && !answer.tokens.length : !waiting}>
        <summary>
          <b>{name}</b> {voice.composition ? `${strategy ?? "compose"} on ${voice.model}` : voice.model}
        </summary>
        <Composer voice={voice} world={world} onChange={props.onVoice} />
      </details>
      {(answer || waiting) && (
        <div class="answer" aria-busy={waiting || answer?.status === "running"}>
          {answer && answer.tokens.length > 0 && (
            <Tokens
              key={answer.run}
              name={name}
              tokens={answer.tokens}
              measure={measure}
              selected={selected}
              differs={differs}
              onSelect={props.onSelect}
            />
          )}
          {answer?.problem && (
            <p class="problem" role="alert">
              {answer.problem}
            </p>
          )}
          <p class="state" role="status">
            {state(answer)}
            {differs !== null && answer && answer.tokens.length > differs && `; first difference at token ${differs + 1}`}
          </p>
        </div>
      )}
      <div class="row">
        <button type="button" class="small" onClick={props.onCopy}>
          Copy as curl or Python
        </button>
        {voice.prefix && (
          <button type="button" class="small" onClick={props.onBegin}>
            back to its own beginning
          </button>
        )}
        {!alone && (
          <button
            type="button"
            class="small"
            aria-label={`Remove answer ${name}`}
            disabled={busy}
            onClick={props.onRemove}
          >
            remove
          </button>
        )}
      </div>
    </section>
  );
}

function state(answer: Answer | null): string {
  if (!answer) return "asking…";
  const count = answer.tokens.length;
  const tokens = `${count} ${count === 1 ? "token" : "tokens"}`;
  const words = { running: "writing…", done: "done", stopped: "stopped", failed: "failed" };
  return answer.status === "running"
    ? words.running
    : `${tokens} in ${answer.seconds.toFixed(1)} s, ${words[answer.status]}`;
}
