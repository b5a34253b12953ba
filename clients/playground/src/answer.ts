// An answer while it is written: tokens with their traces, gathered between two frames of the screen.

import { isRefusal, streamed, type Form, type Stream, type Trace } from "./api";
import { traced, type Request } from "./request";

export interface Token {
  text: string;
  trace: Trace;
  thought: boolean;
}

export interface Answer {
  /** Of the run that wrote it: another one for each time it is asked. */
  run: number;
  tokens: Token[];
  status: "running" | "done" | "stopped" | "failed";
  problem: string | null;
  streams: Stream[];
  seconds: number;
}

/** What was answered, without the thought before it. */
export function textOf(answer: Answer): string {
  return answer.tokens.map((token) => (token.thought ? "" : token.text)).join("");
}

/** Asks, and tells of the answer at most once per frame; returns when it is over. */
export async function run(
  request: Request,
  top: number,
  form: Form,
  signal: AbortSignal,
  tell: (answer: Answer) => void,
): Promise<void> {
  const began = performance.now();
  let answer: Answer = { run: began, tokens: [], status: "running", problem: null, streams: [], seconds: 0 };
  let added: Token[] = [];
  let frame = 0;
  const flush = (change: Partial<Answer> = {}) => {
    cancelAnimationFrame(frame);
    frame = 0;
    const tokens = [...answer.tokens, ...added];
    answer = { ...answer, tokens, ...change, seconds: (performance.now() - began) / 1000 };
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
      const last = answer.tokens.at(-1);
      if (last) {
        answer = { ...answer, tokens: answer.tokens.slice(0, -1) };
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
