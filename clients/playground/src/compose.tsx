// One column's composition: who answers, and, for a written one, its strategy, roles and parameters. Made from what
// GET /v1/strategies says: a strategy that the server learns appears here by itself.

import { useId } from "preact/hooks";
import type { Json, Strategy, World } from "./api";
import { begun, modelOf } from "./begin";
import { Fields } from "./fields";
import type { Voice } from "./state";

export function Composer({ voice, world, onChange }: { voice: Voice; world: World; onChange: (voice: Voice) => void }) {
  const plain = world.cards.filter((card) => !card.composition);
  const named = world.cards.filter((card) => card.composition);
  const card = world.cards.find((one) => one.id === voice.model);
  const shown = voice.composition ?? card?.composition ?? null;
  const strategy = shown && world.strategies.find((one) => one.id === strategyOf(shown));
  const who = useId();
  const how = useId();
  const write = (composition: Json) => onChange({ model: baseName(voice, composition, world), composition });
  return (
    <div class="composer">
      <div class="field">
        <label for={who}>Model or named composition</label>
        <select
          id={who}
          value={voice.model}
          onChange={(event) => onChange({ model: event.currentTarget.value, composition: null })}
        >
          {named.length > 0 && (
            <optgroup label="Named compositions">
              {named.map((one) => (
                <option key={one.id}>{one.id}</option>
              ))}
            </optgroup>
          )}
          <optgroup label="Models">
            {plain.map((one) => (
              <option key={one.id}>{one.id}</option>
            ))}
          </optgroup>
        </select>
      </div>
      <div class="field">
        <label for={how}>Strategy</label>
        <select
          id={how}
          value={strategy?.id ?? ""}
          onChange={(event) => {
            const told = world.strategies.find((one) => one.id === event.currentTarget.value);
            const base = baseName(voice, shown, world);
            onChange({ model: base, composition: told ? begun(told, world, base) : null });
          }}
        >
          <option value="">none: the model alone</option>
          {world.strategies.map((one) => (
            <option key={one.id} value={one.id} disabled={one.unsupported !== null}>
              {one.id}
            </option>
          ))}
        </select>
      </div>
      {strategy && shown && (
        <>
          <About strategy={strategy} />
          <Fields
            told={strategy}
            value={shown}
            scene={{ world, base: baseName(voice, shown, world) }}
            onChange={write}
          />
        </>
      )}
    </div>
  );
}

function strategyOf(composition: Json): string {
  return "compose" in composition ? "compose" : String(composition["strategy"]);
}

/** The model that a written composition steers: the request's, or the composition's own. */
function baseName(voice: Voice, composition: Json | null, world: World): string {
  const own = modelOf(composition?.["base"]);
  const members = composition?.["members"];
  const first = Array.isArray(members) ? modelOf(members[0]) : null;
  const named = world.cards.find((card) => card.id === voice.model)?.composition;
  return own ?? (named ? (first ?? world.casts[0]?.id ?? voice.model) : voice.model);
}

function About({ strategy }: { strategy: Strategy }) {
  return (
    <details class="about">
      <summary>{strategy.summary}</summary>
      <p class="formula">
        {strategy.formula.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part))}
      </p>
      <p>{strategy.description.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part))}</p>
      {strategy.cost && (
        <p>
          {strategy.cost.forwards} {strategy.cost.forwards === 1 ? "forward" : "forwards"} per token of{" "}
          {strategy.cost.models} {strategy.cost.models === 1 ? "model" : "models"}
          {Object.entries(strategy.cost.per_entry).map(([name, more]) => `; ${more} more for another entry of ${name}`)}
          .
        </p>
      )}
      {strategy.papers.map((paper) => (
        <p key={paper.authors}>
          {paper.url ? (
            <a href={paper.url} rel="noreferrer" target="_blank">
              {paper.title ?? paper.authors}
            </a>
          ) : (
            paper.title
          )}{" "}
          {paper.title && paper.authors}
        </p>
      ))}
    </details>
  );
}
