// A parameter's control: a slider over the useful part of its bounds, a choice, a switch, a text, or JSON.

import { useId, useState } from "preact/hooks";
import type { Parameter } from "./api";

export type Change = (value: unknown) => void;

export function ParameterField({
  parameter,
  label = parameter.name,
  value,
  onChange,
}: {
  parameter: Parameter;
  label?: string;
  value: unknown;
  onChange: Change;
}) {
  const numeric = parameter.anyOf?.find((option) => option.type === "number");
  const shown = Array.isArray(value) && value.length === 1 && numeric ? value[0] : value;
  if (parameter.enum) return <Choice parameter={parameter} label={label} value={shown} onChange={onChange} />;
  if (parameter.type === "boolean")
    return <Switch parameter={parameter} label={label} value={shown} onChange={onChange} />;
  if (parameter.type === "string")
    return <Words parameter={parameter} label={label} value={shown} onChange={onChange} />;
  if (parameter.type === "number" || parameter.type === "integer" || (numeric && !Array.isArray(shown))) {
    return <Slider parameter={{ ...numeric, ...parameter }} label={label} value={shown} onChange={onChange} />;
  }
  return <Written parameter={parameter} label={label} value={value} onChange={onChange} />;
}

interface ParameterProps {
  parameter: Parameter;
  label: string;
  value: unknown;
  onChange: Change;
}

/** A slider over the useful part of the bounds, and a number for all of them. */
function Slider({ parameter, label, value, onChange }: ParameterProps) {
  const id = useId();
  const standard = Array.isArray(parameter.default) ? parameter.default[0] : parameter.default;
  const current = typeof value === "number" ? value : typeof standard === "number" ? standard : null;
  const { least, most, step } = range(parameter, current);
  const off = value === null || (value === undefined && standard === null);
  return (
    <div class="field slider">
      <label for={id} title={parameter.description}>
        {label}
      </label>
      <input
        type="range"
        aria-label={`${label}, slider`}
        title={parameter.description}
        min={least}
        max={most}
        step={step}
        value={current ?? least}
        onInput={(event) => onChange(Number(event.currentTarget.value))}
      />
      <input
        id={id}
        type="number"
        min={parameter.minimum}
        max={parameter.maximum}
        step="any"
        value={off ? "" : (current ?? "")}
        placeholder={parameter.nullable ? "off" : ""}
        onChange={(event) =>
          onChange(
            event.currentTarget.value === ""
              ? parameter.nullable && standard !== null
                ? null
                : undefined
              : Number(event.currentTarget.value),
          )
        }
      />
    </div>
  );
}

function range(parameter: Parameter, current: number | null): { least: number; most: number; step: number } {
  const low = parameter.minimum ?? parameter.exclusiveMinimum ?? -100;
  const high = parameter.maximum ?? parameter.exclusiveMaximum ?? 100;
  const whole = parameter.type === "integer";
  const most = Math.min(high, Math.max(3, 2 * Math.abs(current ?? 1)));
  const least = Math.max(low, low < 0 ? Math.min(-1, current ?? 0) : low);
  const step = whole ? 1 : high - low <= 1 ? 0.01 : 0.05;
  const open = parameter.exclusiveMinimum === least && parameter.minimum === undefined;
  return { least: open ? least + step : least, most, step };
}

function Choice({ parameter, label, value, onChange }: ParameterProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id} title={parameter.description}>
        {label}
      </label>
      <select
        id={id}
        value={String(value ?? parameter.default ?? "")}
        onChange={(event) => onChange(event.currentTarget.value)}
      >
        {parameter.enum!.map((one) => (
          <option key={one}>{one}</option>
        ))}
      </select>
    </div>
  );
}

function Switch({ parameter, label, value, onChange }: ParameterProps) {
  return (
    <div class="field">
      <label title={parameter.description}>
        <input
          type="checkbox"
          checked={Boolean(value ?? parameter.default)}
          onChange={(event) => onChange(event.currentTarget.checked)}
        />{" "}
        {label}
      </label>
    </div>
  );
}

function Words({ parameter, label, value, onChange }: ParameterProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id} title={parameter.description}>
        {label}
      </label>
      <input
        id={id}
        type="text"
        value={String(value ?? "")}
        placeholder={parameter.description}
        onInput={(event) => onChange(event.currentTarget.value || undefined)}
      />
    </div>
  );
}

/** Whatever has no control of its own is written as JSON. */
function Written({ parameter, label, value, onChange }: ParameterProps) {
  const id = useId();
  const [wrong, setWrong] = useState(false);
  const change = (text: string) => {
    try {
      onChange(text.trim() ? JSON.parse(text) : undefined);
      setWrong(false);
    } catch {
      setWrong(true);
    }
  };
  return (
    <div class="field">
      <label for={id} title={parameter.description}>
        {label} (JSON)
      </label>
      <input
        id={id}
        type="text"
        aria-invalid={wrong}
        value={value === undefined ? "" : JSON.stringify(value)}
        placeholder={parameter.examples?.length ? JSON.stringify(parameter.examples[0]) : parameter.description}
        onChange={(event) => change(event.currentTarget.value)}
      />
    </div>
  );
}
