// How a composition begins when its strategy is chosen, and who can take its roles, the best first.

import type { Card, Cast, Group, Json, Parameter, Role, Strategy, World } from "./api";

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

/** The beginning of a composition: the operator's own of this strategy on this base, else required roles with the models
 * that suit them best, at the strength that these recommend. */
export function begun(strategy: Strategy, world: World, base: string): Json {
  return named(strategy, world, base) ?? made(strategy, { world, base });
}

function named(strategy: Strategy, world: World, base: string): Json | null {
  const fits = ({ composition }: Card) =>
    composition?.["strategy"] === strategy.id && modelOf(composition["base"]) === base;
  return world.cards.find(fits)?.composition ?? null;
}

function made(strategy: Strategy, scene: Scene): Json {
  const begin = filled(strategy, strategy.id, scene);
  const needed = strategy.roles.some((role) => role.required) || strategy.groups.some((group) => group.required);
  const alone = !strategy.roles.some((role) => role.name !== "base");
  const optional = strategy.roles.filter((role) => role.kind === "model" && role.name !== "base");
  const roles = needed || alone ? {} : played(optional, strategy.id, scene);
  const more = needed || alone ? ruled(strategy) : {};
  return { strategy: strategy.id, ...roles, ...begin, ...more, ...strengthOf(strategy, { ...roles, ...begin }, scene) };
}

/** What the expert's own card recommends, where it is another than the strategy's. */
function strengthOf(strategy: Strategy, roles: Json, { world }: Scene): Json {
  const name = strategy.strength?.parameter;
  const usual = strategy.parameters.find((parameter) => parameter.name === name)?.default;
  const cards = world.cards.filter((card) => Object.values(roles).some((player) => modelOf(player) === card.id));
  const weight = cards.find((card) => card.expert?.strategy === strategy.id)?.expert?.weight;
  return name === undefined || usual === undefined || weight == null || weight === usual ? {} : { [name]: weight };
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
  if (!group.strategies) {
    const made = filled(group, strategy, scene);
    const some = group.parameters.find((parameter) => parameter.default === null);
    return Object.keys(made).length || !some ? made : { [some.name]: first(some) }; // one that says nothing is refused
  }
  const usual = scene.world.strategies.find((one) => one.id === group.strategies![0])!;
  return part(begun(usual, scene.world, scene.base));
}

/** A composition inside a stack, whose base is the stack's. */
export function part({ base: _, ...composition }: Json): Json {
  return composition;
}

function played(roles: Role[], strategy: string, scene: Scene): Json {
  const made: Json = {};
  for (const role of roles) {
    const able = players(role, strategy, scene, made);
    const taken = Object.values(made).map(modelOf);
    const player = able.find((name) => name !== scene.base && !taken.includes(name)) ?? able[0] ?? scene.base;
    if (role.kind === "context") made[role.name] = { prompt: "" };
    else made[role.name] = role.many && role.required ? [scene.base, player] : player;
  }
  return made;
}

/** Who can take a role beside the others, the best first: whom it was made for, and the expert's partner; models that were
 * made for nothing, the smaller first; other strategies' experts; the base itself; experts that belong on another base. */
export function players(role: Role, strategy: string, { world, base }: Scene, others: Json): string[] {
  const fitting = world.casts.find((cast) => cast.id === base)?.composes_with ?? world.casts.map((cast) => cast.id);
  const [expert, partner] = world.strategies.find((one) => one.id === strategy)?.partners ?? [];
  const set = expert === "base" ? base : modelOf(others[expert ?? ""]);
  const beside = world.casts.find((cast) => cast.id === set);
  const rank = (cast: Cast) => {
    const card = world.cards.find(({ id }) => id === cast.id)?.expert;
    if (role.name === partner && cast.id === beside?.partner) return 0;
    if (card?.strategy === strategy && card.role === role.name)
      return partner === "base" && card.partner !== null && cast.partner !== base ? 4 : 0;
    return cast.id === base ? 3 : card?.strategy ? 2 : 1;
  };
  return world.casts
    .filter((cast) => fitting.includes(cast.id) && (cast.roles[strategy]?.includes(role.name) ?? true))
    .sort((one, other) => rank(one) - rank(other) || one.num_parameters - other.num_parameters)
    .map((cast) => cast.id);
}

/** What a parameter that must be there begins with: the server's example, or the lowest that is allowed. */
function first(parameter: Parameter): unknown {
  if (parameter.examples?.length) return parameter.examples[0];
  if (parameter.enum) return parameter.enum[0];
  if (parameter.type === "boolean") return false;
  return parameter.type === "number" || parameter.type === "integer" ? Math.max(parameter.minimum ?? 1, 1) : "";
}
