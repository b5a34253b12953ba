// A role's control: the model, and what it reads.

import { useId } from "preact/hooks";
import type { Json, Role } from "./api";
import { modelOf, players, type Scene } from "./begin";
import { ParameterField, type Change } from "./parameters";

export function RoleField({
  role,
  strategy,
  value,
  others,
  scene,
  onChange,
}: {
  role: Role;
  strategy: string;
  value: unknown;
  /** The fields of the composition, or of the group, that the role stands in. */
  others: Json;
  scene: Scene;
  onChange: Change;
}) {
  if (role.kind === "context")
    return <ContextField role={role} value={value as Json | undefined} onChange={onChange} />;
  const able = role.name === "base" ? scene.world.casts.map((cast) => cast.id) : players(role, strategy, scene, others);
  if (!role.many)
    return <OneRole label={role.name} role={role} able={able} value={value} scene={scene} onChange={onChange} />;
  const list = value === undefined ? [] : Array.isArray(value) ? value : [value];
  const set = (next: unknown[]) => onChange(next.length ? next : undefined);
  return (
    <fieldset>
      <legend title={role.description}>{role.name}</legend>
      {list.map((one, i) => (
        <div class="entry" key={i}>
          <OneRole
            label={`${role.name} ${i + 1}`}
            role={role}
            able={able}
            value={one}
            scene={scene}
            onChange={(next) =>
              set(next === undefined ? list.filter((_, k) => k !== i) : list.map((old, k) => (k === i ? next : old)))
            }
          />
          <button
            type="button"
            class="small"
            aria-label={`Remove ${role.name} ${i + 1}`}
            onClick={() => set(list.filter((_, k) => k !== i))}
          >
            remove
          </button>
        </div>
      ))}
      <button type="button" class="small" onClick={() => set([...list, able.find((name) => !list.some((one) => modelOf(one) === name)) ?? able[0]])}>
        add {role.name}
      </button>
    </fieldset>
  );
}

/** What a role reads: how the choice is called, and the fields that say so. */
const READINGS = {
  prompt: "the prompt",
  chat: "the prompt, in chat form",
  plain: "the prompt, as plain text",
  nothing: "nothing but the answer",
  own: "a text of its own",
  other: "as written in the composition",
} as const;
type Reading = keyof typeof READINGS;

function readingOf(value: unknown): Reading {
  if (typeof value !== "object" || value === null) return "prompt";
  const { prompt, messages, template, last_tokens } = value as Json;
  if (messages !== undefined || last_tokens !== undefined) return "other";
  if (prompt !== undefined) return prompt === "" ? "nothing" : "own";
  return template === "chat" || template === "plain" ? template : "prompt";
}

function OneRole({
  label,
  role,
  able,
  value,
  scene,
  onChange,
}: {
  label: string;
  role: Role;
  able: string[];
  value: unknown;
  scene: Scene;
  onChange: Change;
}) {
  const model = useId();
  const reads = useId();
  const text = useId();
  const reading = readingOf(value);
  const name = modelOf(value);
  const object = (typeof value === "object" && value !== null ? value : {}) as Json;
  const isBase = role.name === "base";
  const write = (change: Json) => onChange(shortest({ ...object, ...(name !== null && { model: name }), ...change }));
  return (
    <>
      <div class="field">
        <label for={model} title={role.description}>
          {label}
        </label>
        <select
          id={model}
          value={name ?? ""}
          title={role.description}
          onChange={(event) =>
            event.currentTarget.value
              ? write({ model: event.currentTarget.value })
              : isBase && Object.keys(object).length > 1
                ? write({ model: undefined })
                : onChange(undefined)
          }
        >
          {!role.required && <option value="">{isBase ? `the request's model (${scene.base})` : "–"}</option>}
          {(name && !able.includes(name) ? [name, ...able] : able).map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
        {(name !== null || isBase) && (
          <>
            <label for={reads} class="reads">
              reads
            </label>
            <select
              id={reads}
              value={reading}
              aria-label={`what ${label} reads`}
              onChange={(event) => write(readingFields(event.currentTarget.value as Reading))}
            >
              {(Object.keys(READINGS) as Reading[])
                .filter((one) => one !== "other" || reading === "other")
                .map((one) => (
                  <option key={one} value={one}>
                    {READINGS[one]}
                  </option>
                ))}
            </select>
          </>
        )}
      </div>
      {reading === "own" && (
        <div class="field">
          <label for={text}>{label}: text</label>
          <textarea
            id={text}
            rows={2}
            value={String(object["prompt"])}
            onInput={(event) => write({ prompt: event.currentTarget.value || " " })}
          />
        </div>
      )}
      {role.parameters.map((parameter) => (
        <ParameterField
          key={parameter.name}
          parameter={parameter}
          label={`${label}: ${parameter.name}`}
          value={object[parameter.name]}
          onChange={(written) => write({ [parameter.name]: written })}
        />
      ))}
    </>
  );
}

function readingFields(reading: Reading): Json {
  const none = { prompt: undefined, messages: undefined, template: undefined, last_tokens: undefined };
  if (reading === "chat" || reading === "plain") return { ...none, template: reading };
  if (reading === "nothing") return { ...none, prompt: "" };
  return reading === "own" ? { ...none, prompt: " " } : none;
}

/** A model that reads the prompt is written by its name alone. */
function shortest(value: Json): unknown {
  const kept = Object.fromEntries(Object.entries(value).filter(([, written]) => written !== undefined));
  const names = Object.keys(kept);
  if (!names.length) return undefined;
  return names.length === 1 && names[0] === "model" ? kept["model"] : kept;
}

function ContextField({ role, value, onChange }: { role: Role; value: Json | undefined; onChange: Change }) {
  const id = useId();
  return (
    <div class="field">
      <label for={id} title={role.description}>
        {role.name} (text)
      </label>
      <textarea
        id={id}
        rows={2}
        value={String(value?.["prompt"] ?? "")}
        placeholder={role.description}
        onInput={(event) =>
          onChange(event.currentTarget.value || role.required ? { prompt: event.currentTarget.value } : undefined)
        }
      />
    </div>
  );
}
