// How a composition begins when its strategy is chosen: required roles with the first models that can take them.

import type { Group, Json, Parameter, Role, Strategy, World } from "./api";

export interface Told {
  id: string;
  roles: Role[];
  parameters: Parameter[];
  groups: Group[];
}

export interface Scene {
  world: World;
  base: string;
}

export function modelOf(value: unknown): string | null {
  if (typeof value === "string") return value;
  return (value as { model?: string } | null | undefined)?.model ?? null;
}

/** The beginning of a composition: required roles with the first models that can take them. */
export function begun(strategy: Strategy, world: World, base: string): Json {
  const scene = { world, base };
  const made = filled(strategy, strategy.id, scene);
  const needed = strategy.roles.some((role) => role.required) || strategy.groups.some((group) => group.required);
  if (needed || !strategy.roles.some((role) => role.name !== "base"))
    return { strategy: strategy.id, ...made, ...ruled(strategy) };
  const optional = strategy.roles.filter((role) => role.kind === "model" && role.name !== "base");
  return { strategy: strategy.id, ...played(optional, strategy.id, scene), ...made };
}

/** A strategy without other models wants one of its parameters written. */
function ruled(strategy: Strategy): Json {
  if (strategy.roles.some((role) => role.name !== "base") || strategy.groups.some((group) => group.required)) return {};
  const first = strategy.parameters.find((parameter) => parameter.type === "number");
  return first ? { [first.name]: first.default } : {};
}

function filled(told: Told | Group, strategy: string, scene: Scene): Json {
  const made = played(
    told.roles.filter((role) => role.required),
    strategy,
    scene,
  );
  for (const parameter of told.parameters) if (parameter.required) made[parameter.name] = first(parameter);
  if ("groups" in told)
    for (const group of told.groups)
      if (group.required) made[group.name] = group.many ? [item(group, strategy, scene)] : item(group, strategy, scene);
  return made;
}

export function item(group: Group, strategy: string, scene: Scene): Json {
  if (!group.strategies) return filled(group, strategy, scene);
  return begun(
    scene.world.strategies.find((one) => one.id === group.strategies![0])!,
    scene.world,
    scene.base,
  );
}

function played(roles: Role[], strategy: string, scene: Scene): Json {
  const made: Json = {};
  roles.forEach((role, number) => {
    const able = players(role, strategy, scene).filter((name) => name !== scene.base);
    const player = role.kind === "context" ? { prompt: "" } : (able[number % Math.max(able.length, 1)] ?? scene.base);
    made[role.name] = role.many && role.required ? [scene.base, player] : player;
  });
  return made;
}

export function players(role: Role, strategy: string, { world, base }: Scene): string[] {
  const fitting = world.casts.find((cast) => cast.id === base)?.composes_with ?? world.casts.map((cast) => cast.id);
  return world.casts
    .filter((cast) => fitting.includes(cast.id) && (cast.roles[strategy]?.includes(role.name) ?? true))
    .map((cast) => cast.id);
}

/** What a parameter that must be there begins with: the server's example, or the lowest that is allowed. */
function first(parameter: Parameter): unknown {
  if (parameter.examples?.length) return parameter.examples[0];
  if (parameter.enum) return parameter.enum[0];
  if (parameter.type === "boolean") return false;
  return parameter.type === "number" || parameter.type === "integer" ? Math.max(parameter.minimum ?? 1, 1) : "";
}
