// The fields of a composition: roles, parameters, and groups of both.

import { useId } from "preact/hooks";
import type { Group, Json } from "./api";
import { begun, item, part, type Scene, type Told } from "./begin";
import { ParameterField, type Change } from "./parameters";
import { RoleField } from "./roles";

export function Fields({
  told,
  value,
  scene,
  onChange,
}: {
  told: Told;
  value: Json;
  scene: Scene;
  onChange: (value: Json) => void;
}) {
  const set = (name: string, written: unknown) => {
    const { [name]: _, ...others } = value;
    onChange(written === undefined ? others : { ...value, [name]: written });
  };
  return (
    <>
      {told.roles.map((role) => (
        <RoleField
          key={role.name}
          role={role}
          strategy={told.id}
          value={value[role.name]}
          others={value}
          scene={scene}
          onChange={(written) => set(role.name, written)}
        />
      ))}
      {told.parameters.map((parameter) => (
        <ParameterField
          key={parameter.name}
          parameter={parameter}
          value={value[parameter.name]}
          onChange={(written) => set(parameter.name, written)}
        />
      ))}
      {told.groups.map((group) => (
        <GroupField
          key={group.name}
          group={group}
          strategy={told.id}
          value={value[group.name]}
          scene={scene}
          onChange={(written) => set(group.name, written)}
        />
      ))}
    </>
  );
}

function GroupField({
  group,
  strategy,
  value,
  scene,
  onChange,
}: {
  group: Group;
  strategy: string;
  value: unknown;
  scene: Scene;
  onChange: Change;
}) {
  const list = (value === undefined || value === null ? [] : Array.isArray(value) ? value : [value]) as Json[];
  const set = (next: Json[]) => onChange(next.length ? (group.many ? next : next[0]) : undefined);
  const replaced = (i: number, one: Json) => set(list.map((old, k) => (k === i ? one : old)));
  const Entry = group.many ? "fieldset" : "div";
  return (
    <fieldset>
      <legend>{group.name}</legend>
      {!list.length && <p class="about">{group.description}</p>}
      {list.map((one, i) => (
        <Entry class="entry" key={i}>
          {group.many && (
            <legend>
              {group.name} {i + 1}
            </legend>
          )}
          {group.strategies ? (
            <Part names={group.strategies} value={one} scene={scene} onChange={(next) => replaced(i, next)} />
          ) : (
            <Fields
              told={{ ...group, id: strategy, groups: [] }}
              value={one}
              scene={scene}
              onChange={(next) => replaced(i, next)}
            />
          )}
          <button
            type="button"
            class="small"
            aria-label={`Remove ${group.name}${group.many ? ` ${i + 1}` : ""}`}
            onClick={() => set(list.filter((_, k) => k !== i))}
          >
            remove
          </button>
        </Entry>
      ))}
      {(group.many || !list.length) && (
        <button type="button" class="small" onClick={() => set([...list, item(group, strategy, scene)])}>
          add {group.many ? "to " : ""}
          {group.name}
        </button>
      )}
    </fieldset>
  );
}

/** A composition inside a stack. */
function Part({
  names,
  value,
  scene,
  onChange,
}: {
  names: string[];
  value: Json;
  scene: Scene;
  onChange: (value: Json) => void;
}) {
  const id = useId();
  const { strategies } = scene.world;
  const told = strategies.find((one) => one.id === value["strategy"]);
  return (
    <>
      <div class="field">
        <label for={id}>Strategy</label>
        <select
          id={id}
          value={told?.id}
          onChange={(event) => {
            const chosen = strategies.find((one) => one.id === event.currentTarget.value)!;
            onChange(part(begun(chosen, scene.world, scene.base)));
          }}
        >
          {names.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </div>
      {told && (
        <Fields
          told={{ ...told, roles: told.roles.filter((role) => role.name !== "base") }}
          value={value}
          scene={scene}
          onChange={onChange}
        />
      )}
    </>
  );
}
