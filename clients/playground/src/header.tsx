// The bar at the top.

import type { ComponentChildren } from "preact";

export function Header({ children }: { children?: ComponentChildren }) {
  return (
    <header class="bar">
      <h1>
        Motet <span class="light">playground</span>
      </h1>
      {children}
    </header>
  );
}
