// What the page shows, as far as a link can carry it: everything but the key and the answers themselves.

import type { Form, Json, World } from "./api";

/** Who answers in one column: a model or named composition as it is, or a composition written here. */
export interface Voice {
  model: string;
  composition: Json | null;
  /** Token ids that its answer begins with: those before the alternative that was chosen, and it. */
  prefix?: number[];
}

export interface Sampling {
  temperature: number;
  /** Null: what the context holds, in completions `COMPLETION_TOKENS`. */
  max_tokens: number | null;
  top_p: number;
  seed: number | null;
}

/** One turn of a conversation: what was asked, and what each column answered. */
export interface Turn {
  asked: string;
  answers: string[];
}

export interface State {
  form: Form;
  system: string;
  draft: string;
  turns: Turn[];
  voices: Voice[];
  sampling: Sampling;
  top: number;
}

export const NAMES = ["A", "B", "C"]; // of the columns
export const MAX_VOICES = NAMES.length;
export const COMPLETION_TOKENS = 64;

export function beginning(world: World): State {
  const first = world.cards.find((card) => card.composition) ?? world.cards[0]!;
  const shortest = Math.min(...world.cards.map((card) => card.max_model_len));
  return {
    form: "chat",
    system: "",
    draft: "",
    turns: [],
    voices: [{ model: first.id, composition: null }],
    sampling: { temperature: 0, max_tokens: Math.min(256, Math.ceil(shortest / 4)), top_p: 1, seed: null },
    top: 8,
  };
}

export function toLink(state: State): string {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The state of a link; what is missing or malformed is that of `initial`. */
export function fromLink(hash: string, initial: State): State {
  const text = hash.replace(/^#/, "");
  if (!text) return initial;
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const read = JSON.parse(new TextDecoder().decode(Uint8Array.from(binary, (char) => char.charCodeAt(0))));
    return sound({ ...initial, ...read, sampling: { ...initial.sampling, ...read.sampling } })
      ? merged(initial, read)
      : initial;
  } catch {
    return initial;
  }
}

function merged(initial: State, read: Partial<State>): State {
  const known = Object.keys(initial) as (keyof State)[];
  const kept = Object.fromEntries(known.filter((name) => name in read).map((name) => [name, read[name]]));
  return { ...initial, ...kept, sampling: { ...initial.sampling, ...read.sampling } };
}

function sound(state: State): boolean {
  return (
    Array.isArray(state.voices) &&
    state.voices.length >= 1 &&
    state.voices.length <= MAX_VOICES &&
    state.voices.every((voice) => typeof voice.model === "string") &&
    Array.isArray(state.turns) &&
    state.turns.every((turn) => typeof turn.asked === "string" && Array.isArray(turn.answers)) &&
    [state.draft, state.system].every((text) => typeof text === "string") &&
    (state.form === "chat" || state.form === "completion")
  );
}
