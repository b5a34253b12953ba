// An answer while it is written: tokens with their traces, gathered between two frames of the screen.

import { isRefusal, streamed, type Form, type Stream, type Trace } from "./api";
import { traced, type Request } from "./request";

export interface Token {
  text: string;
  trace: Trace;
  thought: boolean;
}

/** Tokens in blocks that do not change once they are full: what is on the screen already is not drawn again. */
export const BLOCK = 48;

export interface Answer {
  blocks: Token[][];
  count: number;
  status: "running" | "done" | "stopped" | "failed";
  problem: string | null;
  streams: Stream[];
  seconds: number;
}

export function nothing(): Answer {
  return { blocks: [], count: 0, status: "running", problem: null, streams: [], seconds: 0 };
}

export function tokenAt(answer: Answer, index: number): Token | undefined {
  return answer.blocks[Math.floor(index / BLOCK)]?.[index % BLOCK];
}

export function tracesOf(answer: Answer): Trace[] {
  return answer.blocks.flatMap((block) => block.map((token) => token.trace));
}

/** What was answered, without the thought before it. */
export function textOf(answer: Answer): string {
  return answer.blocks.map((block) => block.map((token) => (token.thought ? "" : token.text)).join("")).join("");
}

/** Without its last token. */
function shorter(answer: Answer): Answer {
  const blocks = [...answer.blocks];
  const last = blocks.pop()!.slice(0, -1);
  return { ...answer, blocks: last.length ? [...blocks, last] : blocks, count: answer.count - 1 };
}

/** Behind `added`; blocks that were full stay the same objects. */
function longer(answer: Answer, added: Token[]): Answer {
  const blocks = [...answer.blocks];
  for (const token of added) {
    const last = blocks.at(-1);
    if (!last || last.length === BLOCK) blocks.push([token]);
    else blocks[blocks.length - 1] = [...last, token];
  }
  return { ...answer, blocks, count: answer.count + added.length };
}

/** Asks, and tells of the answer at most once per frame; returns when it is over. */
export async function run(
  request: Request,
  top: number,
  form: Form,
  signal: AbortSignal,
  tell: (answer: Answer) => void,
): Promise<void> {
  let answer = nothing();
  let added: Token[] = [];
  let frame = 0;
  const began = performance.now();
  const flush = (change: Partial<Answer> = {}) => {
    cancelAnimationFrame(frame);
    frame = 0;
    answer = { ...longer(answer, added), ...change, seconds: (performance.now() - began) / 1000 };
    added = [];
    tell(answer);
  };
  /** A chunk's text belongs to the last of its tokens: those before it were parts of a character. What is certain only
   * later, behind a possible stop text, belongs to the last token so far. */
  const read = (choice: any) => {
    const { text, thought } = textOfChunk(choice, form);
    const traces: Trace[] = choice.motet?.trace ?? [];
    added.push(...traces.map((trace) => ({ trace, text: "", thought })));
    if (text && !added.length) {
      const last = tokenAt(answer, answer.count - 1);
      if (last) {
        answer = shorter(answer);
        added.push(last);
      }
    }
    const last = added.at(-1);
    if (last && text) added[added.length - 1] = { ...last, text: last.text + text, thought };
  };
  try {
    for await (const chunk of streamed(request.path, traced(request, top), signal)) {
      if (chunk.motet) answer.streams = chunk.motet.streams;
      for (const choice of chunk.choices) read(choice);
      frame ||= requestAnimationFrame(() => flush());
    }
    flush({ status: "done" });
  } catch (error) {
    if (signal.aborted) flush({ status: "stopped" });
    else flush({ status: "failed", problem: isRefusal(error) ? error.message : String(error) });
  }
}

/** What a chunk says; a model's thought stands before its answer. */
function textOfChunk(choice: any, form: Form): { text: string; thought: boolean } {
  if (form === "completion") return { text: choice.text ?? "", thought: false };
  const { content, reasoning_content } = choice.delta ?? {};
  return content
    ? { text: content, thought: false }
    : { text: reasoning_content ?? "", thought: Boolean(reasoning_content) };
}
