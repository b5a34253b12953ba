// Up to three answers beside each other, and what each voice did to each token.

import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { run, textOf, type Answer } from "./answer";
import { compositionOf, type Example, type Ranked, type World } from "./api";
import { Ask } from "./ask";
import { Column, Legend } from "./column";
import { CopyDialog } from "./copy";
import { Header } from "./header";
import { firstDifference, SHIFT, type Measure } from "./numbers";
import { Conversation, Examples, Forms, LinkButton } from "./offers";
import { Panel } from "./panel";
import { requestOf, type Request } from "./request";
import { beginning, fromLink, MAX_VOICES, NAMES, toLink, type State, type Voice } from "./state";

interface Selection {
  column: number;
  index: number;
}

export function Playground({ world }: { world: World }) {
  const [state, setState] = useState<State>(() => fromLink(location.hash, beginning(world)));
  const [answers, setAnswers] = useState<(Answer | null)[]>([]);
  const [selected, setSelected] = useState<Selection | null>(null);
  const [measure, setMeasure] = useState<Measure>(SHIFT);
  const [copying, setCopying] = useState<Request | null>(null);
  const running = useRef<(AbortController | undefined)[]>([]);
  const pressed = useRef(false);

  const change = (part: Partial<State>) => setState((old) => ({ ...old, ...part }));
  useEffect(() => {
    const timer = setTimeout(() => history.replaceState(null, "", `#${toLink(state)}`), 200);
    return () => clearTimeout(timer);
  }, [state]);

  const start = useCallback(
    (asked: State, column: number) => {
      running.current[column]?.abort();
      const controller = (running.current[column] = new AbortController());
      const tell = (answer: Answer) => {
        if (running.current[column] === controller) setAnswers((old) => replaced(old, column, answer));
      };
      void run(requestOf(asked, column), asked.top, asked.form, controller.signal, tell);
    },
    [setAnswers],
  );

  const ask = (from: State) => {
    if (!from.draft.trim() && !from.turns.length) return;
    const asked = from.draft.trim() ? withTurn(from, answers) : from;
    setState(asked);
    setSelected(null);
    setAnswers(asked.voices.map(() => null));
    asked.voices.forEach((_, column) => start(asked, column));
  };

  const offer = (example: Example) => {
    stop();
    const voices = [example.model, ...example.beside]
      .slice(0, MAX_VOICES)
      .map((model) => ({ model, composition: null }));
    ask({ ...state, form: example.form, turns: [], voices, draft: example.question });
  };

  const stop = () => running.current.forEach((controller) => controller?.abort());
  const clear = () => {
    stop();
    running.current = [];
    setAnswers([]);
    setSelected(null);
    change({ turns: [], draft: "" });
  };

  const goOn = (column: number, index: number, alternative: Ranked) => {
    const before = answers[column]!.tokens.slice(0, index);
    begin(column, [...before.map(({ trace }) => trace.token_id), alternative.token_id]);
    setSelected({ column, index });
  };

  /** Asks one column anew, for an answer that begins with given tokens. */
  const begin = (column: number, prefix: number[]) => {
    const { prefix: _, ...voice } = state.voices[column]!;
    const next = { ...state, voices: replaced(state.voices, column, prefix.length ? { ...voice, prefix } : voice) };
    setState(next);
    start(next, column);
  };

  const busy =
    answers.some((answer) => answer?.status === "running") ||
    (answers.length > 0 && answers.some((answer) => answer === null));
  const differs = useMemo(() => firstDifference(answers.map((answer) => answer?.tokens ?? [])), [answers]);
  const roles = [...new Set(answers.flatMap((answer) => Object.keys(answer?.tokens[0]?.trace.push ?? {})))];
  const token = selected ? answers[selected.column]?.tokens[selected.index] : undefined;

  return (
    <>
      <Header>
        <Forms form={state.form} onChange={(form) => (clear(), change({ form }))} />
        <span class="gap" />
        <LinkButton state={state} />
      </Header>
      <main>
        {!answers.length && !state.turns.length && <Examples world={world} onOffer={offer} onVoices={(voices) => change({ voices })} />}
        <Conversation state={state} />
        <Legend measure={measure} roles={roles} onChange={setMeasure} shown={answers.length > 0} differs={differs !== null} />
        <div class={`columns n${state.voices.length}`}>
          {state.voices.map((voice, column) => (
            <Column
              key={column}
              name={NAMES[column]!}
              alone={state.voices.length === 1}
              voice={voice}
              world={world}
              answer={answers[column] ?? null}
              measure={measure}
              selected={selected?.column === column ? selected.index : null}
              differs={differs}
              waiting={column < answers.length && !answers[column]}
              busy={busy}
              onVoice={(next) => change({ voices: state.voices.map((old, i) => (i === column ? next : old)) })}
              onSelect={(index, byPointer) => {
                pressed.current = byPointer;
                setSelected(index === null ? null : { column, index });
              }}
              onBegin={() => (setSelected(null), begin(column, []))}
              onCopy={() => setCopying(requestOf(state, column))}
              onRemove={() => {
                running.current.splice(column, 1);
                setAnswers(answers.filter((_, i) => i !== column));
                setSelected(null);
                change({
                  voices: state.voices.filter((_, i) => i !== column),
                  turns: state.turns.map((turn) => ({ ...turn, answers: turn.answers.filter((_, i) => i !== column) })),
                });
              }}
            />
          ))}
        </div>
        <div class="row">
          {state.voices.length < MAX_VOICES && (
            <button
              type="button"
              class="small"
              onClick={() => change({ voices: [...state.voices, beside(state, world)] })}
            >
              + compare with another
            </button>
          )}
          {state.turns.length > 0 && (
            <button type="button" class="small" onClick={clear}>
              begin anew
            </button>
          )}
        </div>
        {token && selected && (
          <Panel
            key={`${selected.column}-${selected.index}-${token.trace.token_id}`}
            name={NAMES[selected.column]!}
            index={selected.index}
            shownAtOnce={pressed.current}
            trace={token.trace}
            streams={answers[selected.column]!.streams}
            composition={compositionOf(state.voices[selected.column]!, world)}
            strategies={world.strategies}
            onContinue={(alternative) => goOn(selected.column, selected.index, alternative)}
            onClose={() => setSelected(null)}
          />
        )}
      </main>
      <Ask
        state={state}
        busy={busy}
        asked={state.turns.length > 0}
        answered={answers.length > 0}
        onChange={change}
        onAsk={() => ask(state)}
        onStop={stop}
      />
      {copying && <CopyDialog request={copying} onClose={() => setCopying(null)} />}
    </>
  );
}

function replaced<T>(list: T[], index: number, value: T): T[] {
  const copy = [...list];
  copy[index] = value;
  return copy;
}

/** The draft becomes a turn; the answers so far become part of the conversation. */
function withTurn(state: State, answers: (Answer | null)[]): State {
  const turns = state.turns.map((turn, i) =>
    i === state.turns.length - 1
      ? { ...turn, answers: state.voices.map((_, k) => (answers[k] ? textOf(answers[k]!) : (turn.answers[k] ?? ""))) }
      : turn,
  );
  const kept = state.form === "chat" ? turns : [];
  const voices = state.voices.map(({ model, composition }) => ({ model, composition }));
  return { ...state, voices, draft: "", turns: [...kept, { asked: state.draft, answers: [] }] };
}

/** What stands well beside a composition: its base alone. */
function beside(state: State, world: World): Voice {
  const composition = compositionOf(state.voices[0]!, world);
  const base = composition?.["base"] as string | { model?: string } | undefined;
  const name = typeof base === "string" ? base : base?.model;
  const model =
    name ??
    (world.cards.find((card) => card.id === state.voices[0]!.model)?.composition
      ? (world.casts[0]?.id ?? state.voices[0]!.model)
      : state.voices[0]!.model);
  return { model, composition: null };
}
