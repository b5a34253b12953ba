// The page: it reads what there is to compose with, asks for a key where the server wants one, and begins.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { isRefusal, key, world as readWorld, type Refusal, type World } from "./api";
import { Header } from "./header";
import { Playground } from "./playground";

function Page() {
  const [world, setWorld] = useState<World | null>(null);
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const load = () => {
    readWorld().then(setWorld, (error) =>
      setRefusal(isRefusal(error) ? error : { status: 0, message: String(error), param: null, retryAfter: null }),
    );
  };
  useEffect(load, []);
  useEffect(() => {
    if (!refusal?.retryAfter) return;
    const timer = setTimeout(load, 1000 * refusal.retryAfter);
    return () => clearTimeout(timer);
  }, [refusal]);
  if (world) return <Playground world={world} />;
  return (
    <>
      <Header />
      <main>
        {refusal && (refusal.status === 401 ? <KeyForm onKey={load} /> : <Notice {...{ refusal, load }} />)}
      </main>
    </>
  );
}

function Notice({ refusal, load }: { refusal: Refusal; load: () => void }) {
  return (
    <p class={refusal.retryAfter ? "notice" : "notice problem"} role={refusal.retryAfter ? "status" : "alert"}>
      {refusal.message} {refusal.retryAfter && "This page tries again by itself. "}
      <button type="button" onClick={load}>
        Try again
      </button>
    </p>
  );
}

function KeyForm({ onKey }: { onKey: () => void }) {
  const refused = key.get(); // what was asked with
  return (
    <form
      class="notice"
      onSubmit={(event) => {
        event.preventDefault();
        key.set(new FormData(event.currentTarget).get("key") as string);
        onKey();
      }}
    >
      <label for="key">This server wants an API key. It is kept in this tab, until it is closed.</label>
      <div class="row">
        <input id="key" name="key" type="password" autocomplete="off" required />
        <button class="main">Use it</button>
      </div>
      {refused && <p role="alert">The server does not know that key.</p>}
    </form>
  );
}

const page = document.getElementById("page")!;
page.replaceChildren();
render(<Page />, page);
