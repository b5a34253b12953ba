// The request as text, to be copied.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { key } from "./api";
import { asCurl, asPython, type Request } from "./request";

const FORMS = { curl: asCurl, Python: asPython } as const;

export function CopyDialog({ request, onClose }: { request: Request; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [form, setForm] = useState<keyof typeof FORMS>("curl");
  const [copied, setCopied] = useState(false);
  const text = FORMS[form](request, location.origin, key.get() !== "");
  useLayoutEffect(() => dialog.current?.showModal(), []);
  const copy = async () => {
    await copyText(text, dialog.current!);
    setCopied(true);
  };
  return (
    <dialog ref={dialog} aria-label="Copy this request" onClose={onClose}>
      <div class="row">
        {(Object.keys(FORMS) as (keyof typeof FORMS)[]).map((name) => (
          <button
            type="button"
            key={name}
            aria-pressed={name === form}
            onClick={() => (setForm(name), setCopied(false))}
          >
            {name === "Python" ? "Python, openai SDK" : name}
          </button>
        ))}
        <span class="gap" />
        <button type="button" class="main" onClick={copy}>
          {copied ? "Copied" : "Copy"}
        </button>
        <button type="button" onClick={() => dialog.current?.close()}>
          Close
        </button>
      </div>
      <pre tabIndex={0} aria-label={`The request for ${form}`}>
        {text}
      </pre>
      {key.get() && <p>Your key is not part of it: set MOTET_API_KEY.</p>}
      <p role="status" class="unseen">
        {copied ? "Copied" : ""}
      </p>
    </dialog>
  );
}

/** Browsers give the clipboard to pages of this machine and of https; elsewhere the text is selected and copied. */
export async function copyText(text: string, near: HTMLElement): Promise<void> {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text).catch(() => byHand(text, near));
  } else byHand(text, near);
}

function byHand(text: string, near: HTMLElement): void {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  near.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
