// The server's answers, as the page reads them, and how it asks.

export interface Parameter {
  name: string;
  description: string;
  required: boolean;
  default: unknown;
  nullable: boolean;
  type?: string;
  enum?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  examples?: unknown[];
  anyOf?: { type?: string; minimum?: number; maximum?: number }[];
}

export interface Role {
  name: string;
  description: string;
  required: boolean;
  kind: "model" | "context";
  many: boolean;
  parameters: Parameter[];
}

export interface Group {
  name: string;
  description: string;
  required: boolean;
  many: boolean;
  strategies: string[] | null;
  roles: Role[];
  parameters: Parameter[];
}

export interface Paper {
  title: string | null;
  authors: string;
  url: string | null;
}

export interface Strategy {
  id: string;
  summary: string;
  formula: string;
  description: string;
  papers: Paper[];
  roles: Role[];
  parameters: Parameter[];
  groups: Group[];
  strength: { parameter: string; neutral: number } | null;
  partners: [string, string] | null;
  cost: { forwards: number; models: number; per_entry: Record<string, number> } | null;
  unsupported: string | null;
}

export interface Cast {
  id: string;
  composes_with: string[];
  roles: Record<string, string[]>;
  partner: string | null;
  num_parameters: number;
}

export interface Card {
  id: string;
  composition: Json | null;
  expert: { role: string; strategy: string | null; weight: number | null; partner: string | null } | null;
  max_model_len: number;
}

export interface Example {
  title: string;
  model: string;
  beside: string[];
  question: string;
  form: Form;
}

export type Form = "chat" | "completion";
export type Json = { [name: string]: unknown };

/** All that the page has to know before anything is asked. */
export interface World {
  strategies: Strategy[];
  casts: Cast[];
  cards: Card[];
  examples: Example[];
}

export interface Ranked {
  token: string;
  token_id: number;
  logprob: number;
}

export interface Alternative extends Ranked {
  members: Record<string, number>;
}

/** One token's trace, as `choices[].motet.trace` holds it with `{"members": true}`. */
export interface Trace extends Ranked {
  members: Record<string, number>;
  kl: number;
  base_rank: number;
  shift: "unshifted" | "marginal" | "shifted";
  argmax_moved: boolean;
  alpha?: number | number[];
  top: { base: Ranked[]; composed: Ranked[] };
  ranks: Record<string, number>;
  push: Record<string, number> | null;
  alternatives: Alternative[];
}

export interface Stream {
  role: string;
  model: string;
  weight: number;
}

export interface Refusal {
  status: number;
  message: string;
  param: string | null;
  /** Seconds, where it may be another in a while. */
  retryAfter: number | null;
}

/** What answers in a column, where it is a composition: written, or named by the operator. */
export function compositionOf(voice: { model: string; composition: Json | null }, world: World): Json | null {
  return voice.composition ?? world.cards.find((card) => card.id === voice.model)?.composition ?? null;
}

/** The key lives in this tab's session alone: in no link, no file, no cookie. */
const KEY = "motet-key";
export const key = {
  get: (): string => sessionStorage.getItem(KEY) ?? "",
  set: (value: string): void => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export function isRefusal(error: unknown): error is Refusal {
  return typeof error === "object" && error !== null && "status" in error && "message" in error;
}

const UNREACHED = 5; // seconds until a server that nobody reached is tried again

async function ask(path: string, body?: Json, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  if (body) headers["content-type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const message = "The server cannot be reached.";
    throw { status: 0, message, param: null, retryAfter: UNREACHED } satisfies Refusal;
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response: Response): Promise<Refusal> {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {};
  const message = error.message ?? response.statusText;
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  return { status: response.status, message, param: error.param ?? null, retryAfter };
}

/** What a policy of the key closes is not there for this page: it offers what is left. */
function unlessClosed<T>(nothing: T): (error: unknown) => T {
  return (error) => {
    if (isRefusal(error) && (error.status === 403 || error.status === 404)) return nothing;
    throw error;
  };
}

export async function world(): Promise<World> {
  const read = async (path: string) => (await ask(path)).json();
  const [told, models, examples] = await Promise.all([
    read("/v1/strategies").catch(unlessClosed({ data: [], models: [] })),
    read("/v1/models"),
    read("/playground/examples").catch(unlessClosed({ data: [] })),
  ]);
  return { strategies: told.data, casts: told.models, cards: models.data, examples: examples.data };
}

/** The events of a streamed answer. */
export async function* streamed(path: string, body: Json, signal: AbortSignal): AsyncGenerator<any> {
  const response = await ask(path, body, signal);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop()!;
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) {
        const { message, param } = chunk.error;
        throw { status: 200, message, param, retryAfter: null } satisfies Refusal;
      }
      yield chunk;
    }
  }
}
