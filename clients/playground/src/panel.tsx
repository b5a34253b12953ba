// What each voice said of one token: log-probs, ranks and pushes, the alternatives before and after, and the same
// alternatives at another strength.

import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Alternative, Json, Ranked, Stream, Strategy, Trace } from "./api";
import { baseOf, LOWEST, nats, percent, restrengthened, signed, strengthOf } from "./numbers";

interface Props {
  name: string;
  index: number;
  shownAtOnce: boolean;
  trace: Trace;
  streams: Stream[];
  composition: Json | null;
  strategies: Strategy[];
  onContinue: (alternative: Ranked) => void;
  onClose: () => void;
}

export function Panel(props: Props) {
  const { name, index, shownAtOnce, trace, streams, composition, strategies, onContinue, onClose } = props;
  const section = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    // whoever presses a token sees what comes of it, on small screens too; arrow keys leave the text where it is
    if (shownAtOnce && section.current!.getBoundingClientRect().top > innerHeight / 2)
      section.current!.scrollIntoView({ block: "start" });
  }, []);
  return (
    <section ref={section} class="panel" aria-label={`Token ${index + 1} of answer ${name}`}>
      <header>
        <h2>
          {name}
          {index + 1}: <code>{shown(trace.token)}</code>
        </h2>
        <button type="button" class="small" onClick={onClose}>
          close
        </button>
      </header>
      <p>
        Composed <b data-of="logprob">{nats(trace.logprob)}</b> ({percent(trace.logprob)}), base {nats(baseOf(trace))} (
        {percent(baseOf(trace))}): the composition moved it by <b>{signed(trace.logprob - baseOf(trace))}</b> nats. For
        the base it was {ordinal(trace.base_rank)} ({trace.shift}); KL(composed ‖ base) is{" "}
        <b data-of="kl">{nats(trace.kl)}</b>.
        {trace.argmax_moved && (
          <>
            {" "}
            From what it reads, the base would have said <code>{shown(trace.top.base[0]?.token ?? "another token")}</code>.
          </>
        )}
      </p>
      <div class="tables">
        <Voices trace={trace} streams={streams} />
        <Alternatives trace={trace} strength={strengthOf(composition, strategies)} onContinue={onContinue} />
      </div>
    </section>
  );
}

function Voices({ trace, streams }: { trace: Trace; streams: Stream[] }) {
  const roles = Object.keys(trace.members);
  const pushed = trace.push ? Object.values(trace.push).reduce((sum, value) => sum + value, 0) : null;
  const moved = trace.logprob - baseOf(trace);
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label="Voices">
      <table class="voices">
        <caption>Voices</caption>
        <thead>
          <tr>
            <th scope="col">role</th>
            <th scope="col">model</th>
            <th scope="col">weight</th>
            <th scope="col">log-prob</th>
            <th scope="col">rank</th>
            <th scope="col">push, nats</th>
          </tr>
        </thead>
        <tbody>
          {roles.map((role) => {
            const stream = streams.find((one) => one.role === role);
            return (
              <tr key={role} data-role={role}>
                <th scope="row">{role}</th>
                <td>{stream?.model}</td>
                <td>{stream ? nats(stream.weight) : ""}</td>
                <td data-of="member">{nats(trace.members[role]!)}</td>
                <td data-of="rank">{trace.ranks[role]! + 1}</td>
                <td data-of="push">{trace.push ? signed(trace.push[role]!) : "–"}</td>
              </tr>
            );
          })}
          {pushed !== null && (
            <tr>
              <th scope="row" colSpan={5}>
                normalisation, masks and rules
              </th>
              <td class="number">{signed(moved - pushed)}</td>
            </tr>
          )}
          <tr class="sum">
            <th scope="row" colSpan={5}>
              composed − base
            </th>
            <td class="number">{signed(moved)}</td>
          </tr>
        </tbody>
      </table>
    </div>
  );
}

type Strength = { name: string; value: number; neutral: number } | null;

function Alternatives({
  trace,
  strength,
  onContinue,
}: {
  trace: Trace;
  strength: Strength;
  onContinue: (alternative: Ranked) => void;
}) {
  const [factor, setFactor] = useState(1);
  const id = useId();
  const roles = Object.keys(trace.members);
  const rows = restrengthened(trace, factor);
  const before = new Map(trace.top.base.map((one, i) => [one.token_id, i + 1]));
  const after = new Map(trace.top.composed.map((one, i) => [one.token_id, i + 1]));
  const sums = trace.push !== null;
  const at = strength ? strength.neutral + factor * (strength.value - strength.neutral) : factor;
  const label = strength ? `${strength.name} = ${at.toFixed(2)}` : `shift × ${factor.toFixed(2)}`;
  return (
    <div>
      {sums && roles.length > 1 && (
        <div class="field slider">
          <label for={id}>What if: {label}</label>
          <input
            id={id}
            type="range"
            min={0}
            max={2.5}
            step={0.05}
            value={factor}
            aria-valuetext={label}
            onInput={(event) => setFactor(Number(event.currentTarget.value))}
          />
          <button type="button" class="small" disabled={factor === 1} onClick={() => setFactor(1)}>
            as it was
          </button>
        </div>
      )}
      <div class="scroll" tabIndex={0} role="group" aria-label="Alternatives">
        <table class="alternatives">
          <caption>Alternatives: press one to go on from it</caption>
          <thead>
            <tr>
              <th scope="col">token</th>
              <th scope="col">before</th>
              <th scope="col">after</th>
              <th scope="col">share</th>
              <th scope="col">composed</th>
              {roles.map((role) => (
                <th scope="col" key={role}>
                  {role}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map(({ one, share }) => (
              <tr
                key={one.token_id}
                data-token={one.token_id}
                class={one.token_id === trace.token_id ? "chosen" : undefined}
              >
                <th scope="row">
                  <button
                    type="button"
                    class="token"
                    aria-label={`Go on from ${shown(one.token)}`}
                    title="Go on from this token"
                    onClick={() => onContinue(one)}
                  >
                    {shown(one.token)}
                  </button>
                  {one.token_id === trace.token_id && <span class="said"> said</span>}
                </th>
                <td>{before.get(one.token_id) ?? ""}</td>
                <td>{after.get(one.token_id) ?? ""}</td>
                <td data-of="share">
                  <meter min={0} max={1} value={share} aria-label={`share of ${shown(one.token)}`} />{" "}
                  {(100 * share).toFixed(1)} %
                </td>
                <td data-of="composed">{cell(one.logprob)}</td>
                {roles.map((role) => (
                  <td key={role} data-of={`member-${role}`}>
                    {cell(one.members[role]!)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}

function cell(logprob: Alternative["logprob"]): string {
  return logprob <= LOWEST ? "ruled out" : nats(logprob);
}

/** Spaces and line ends can be seen. */
function shown(token: string): string {
  return token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

function ordinal(rank: number): string {
  return rank === 0 ? "the first choice" : `choice number ${rank + 1}`;
}
