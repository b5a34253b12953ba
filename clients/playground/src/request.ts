// From the page's state to the requests that it sends, and to the same requests as text to be copied.

import type { Json } from "./api";
import { COMPLETION_TOKENS, type State } from "./state";

export interface Request {
  path: string;
  body: Json;
}

/** What column `column` asks. */
export function requestOf(state: State, column: number): Request {
  const voice = state.voices[column]!;
  const { temperature, max_tokens, top_p, seed } = state.sampling;
  const limit = max_tokens ?? (state.form === "completion" ? COMPLETION_TOKENS : null);
  const body: Json = {
    model: voice.model,
    ...(voice.composition && { composition: voice.composition }),
    ...question(state, column),
    temperature,
    ...(limit !== null && { max_tokens: limit }),
    ...(top_p < 1 && { top_p }),
    ...(seed !== null && { seed }),
    ...(voice.prefix?.length && { answer_prefix: voice.prefix }),
  };
  return { path: state.form === "chat" ? "/v1/chat/completions" : "/v1/completions", body };
}

/** The same, streamed, with all that the page shows of each token. */
export function traced(request: Request, top: number): Json {
  return { ...request.body, stream: true, stream_options: { include_usage: true }, trace: { top, members: true } };
}

function question(state: State, column: number): Json {
  if (state.form === "completion") return { prompt: state.turns.at(-1)?.asked ?? state.draft };
  const messages = state.system ? [{ role: "system", content: state.system }] : [];
  state.turns.forEach((turn, number) => {
    messages.push({ role: "user", content: turn.asked });
    if (number < state.turns.length - 1) messages.push({ role: "assistant", content: turn.answers[column] ?? "" });
  });
  if (!state.turns.length) messages.push({ role: "user", content: state.draft });
  return { messages };
}

export function asCurl(request: Request, origin: string, hasKey: boolean): string {
  const lines = [`curl ${origin}${request.path}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $MOTET_API_KEY"');
  lines.push(`-d '${JSON.stringify(request.body, null, 2).replaceAll("'", "'\\''")}'`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** For the openai SDK: fields that are not OpenAI's stand in `extra_body`. */
export function asPython(request: Request, origin: string, hasKey: boolean): string {
  const { composition, answer_prefix, ...own } = request.body;
  const extra = {
    ...(composition !== undefined && { composition }),
    ...(answer_prefix !== undefined && { answer_prefix }),
  };
  const chat = request.path.endsWith("/chat/completions");
  const named = Object.entries(own).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  if (Object.keys(extra).length) named.push(`    extra_body=${python(extra, 4)},`);
  const key = hasKey ? 'os.environ["MOTET_API_KEY"]' : '"none"';
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})`,
    `answer = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...named,
    ")",
    `print(answer.choices[0].${chat ? "message.content" : "text"})`,
    "",
  ].join("\n");
}

/** A value as Python writes it. */
function python(value: unknown, indent: number): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  const inner = " ".repeat(indent + 4);
  const outer = " ".repeat(indent);
  if (Array.isArray(value)) {
    if (!value.length || value.every((item) => typeof item === "number")) return `[${value.join(", ")}]`;
    return `[\n${value.map((item) => `${inner}${python(item, indent + 4)},\n`).join("")}${outer}]`;
  }
  if (typeof value === "object") {
    const items = Object.entries(value).map(
      ([name, item]) => `${inner}${JSON.stringify(name)}: ${python(item, indent + 4)},\n`,
    );
    return items.length ? `{\n${items.join("")}${outer}}` : "{}";
  }
  return JSON.stringify(value); // strings and numbers are written alike
}
