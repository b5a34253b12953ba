// The few numbers that the page computes itself, from those of a trace.

import type { Token } from "./answer";
import type { Alternative, Json, Strategy, Trace } from "./api";

/** Stands for −∞ in the API's answers. */
export const LOWEST = -9999;

/** What colours a token: how far the whole composition moved it, how far all of the distribution, or one voice's push. */
export type Measure = { of: "shift" } | { of: "kl" } | { of: "push"; role: string };

export const SHIFT: Measure = { of: "shift" };

export function baseOf(trace: Trace): number {
  return trace.members["base"]!;
}

/** Nats; null where the trace has no such number. */
export function measured(trace: Trace, measure: Measure): number | null {
  if (measure.of === "kl") return trace.kl;
  if (measure.of === "shift") return trace.logprob - baseOf(trace);
  return trace.push?.[measure.role] ?? null;
}

/** −4 to 4: which of the colours a number of nats has. */
export function shade(nats: number | null): number {
  if (nats === null) return 0;
  const size = Math.abs(nats);
  const step = size < 0.1 ? 0 : size < 0.7 ? 1 : size < 2 ? 2 : size < 5 ? 3 : 4;
  return nats < 0 ? -step : step;
}

export function nats(value: number): string {
  if (value <= LOWEST) return "−∞";
  const text = value.toFixed(3);
  return Number(text) === 0 ? "0.000" : text.replace("-", "−");
}

export function signed(value: number): string {
  const text = nats(value);
  return value > 0 && text !== "0.000" ? `+${text}` : text;
}

export function percent(logprob: number): string {
  const p = 100 * Math.exp(logprob);
  return p >= 10 ? `${p.toFixed(1)} %` : p >= 0.01 ? `${p.toFixed(2)} %` : p > 0 ? "< 0.01 %" : "0 %";
}

/**
 * The alternatives when the whole shift is multiplied by `factor`, with their shares among themselves, likeliest first.
 *
 * Wherever the score is a sum, composed − base is the shift up to a constant, so that base + factor · (composed − base)
 * has the log-odds that the server would compute at that strength; tokens outside a mask stay outside.
 */
export function restrengthened(trace: Trace, factor: number): { one: Alternative; share: number }[] {
  const scores = trace.alternatives.map((one) => {
    const base = one.members["base"]!;
    return one.logprob <= LOWEST ? -Infinity : base + factor * (one.logprob - base);
  });
  const most = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return trace.alternatives.map((one, i) => ({ one, share: weights[i]! / total })).sort((a, b) => b.share - a.share);
}

/** The strength that a composition has, and its name; null where no one parameter scales the shift. */
export function strengthOf(
  composition: Json | null,
  strategies: Strategy[],
): { name: string; value: number; neutral: number } | null {
  const told = strategies.find((strategy) => strategy.id === composition?.["strategy"]);
  if (!told?.strength || !composition) return null;
  const { parameter, neutral } = told.strength;
  const written = composition[parameter] ?? told.parameters.find((p) => p.name === parameter)?.default;
  const value = Array.isArray(written) && written.length === 1 ? written[0] : written;
  return typeof value === "number" && value !== neutral ? { name: parameter, value, neutral } : null;
}

/** The first position at which columns say different tokens; null where they agree as far as both go. */
export function firstDifference(columns: Token[][]): number | null {
  const written = columns.filter((column) => column.length > 0);
  if (written.length < 2) return null;
  const longest = Math.max(...written.map((column) => column.length));
  for (let i = 0; i < longest; i++) {
    const said = written.flatMap((column) => column[i]?.trace.token_id ?? []);
    if (said.some((id) => id !== said[0])) return i;
  }
  return null;
}
