// The page: it reads what there is to compose with, asks for a key where the server wants one, and begins.

import { render } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import { isRefusal, key, world as readWorld, type World } from "./api";
import { Header } from "./header";
import { Playground } from "./playground";

function Page() {
  const [world, setWorld] = useState<World | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [refused, setRefused] = useState<string | null>(null); // the key that the server did not take
  const load = useCallback(() => {
    setProblem(null);
    readWorld().then(
      (read) => setWorld(read),
      (error) =>
        isRefusal(error) && error.status === 401
          ? setRefused(key.get())
          : setProblem(isRefusal(error) ? error.message : String(error)),
    );
  }, []);
  useEffect(load, []);
  if (world) return <Playground world={world} />;
  return (
    <>
      <Header />
      <main>
        {refused !== null && <KeyForm refused={refused} onKey={load} />}
        {problem && (
          <p class="notice problem" role="alert">
            {problem}{" "}
            <button type="button" onClick={load}>
              Try again
            </button>
          </p>
        )}
      </main>
    </>
  );
}

function KeyForm({ refused, onKey }: { refused: string; onKey: () => void }) {
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
