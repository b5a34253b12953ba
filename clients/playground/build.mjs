// Bundles the page into the package: `npm install && npm run build`. The first line of the bundle names the hash of the
// source that it was made from; a test compares it with the source, so that neither is committed without the other.
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "../../motet/server/static");

const files = [
  "build.mjs",
  "package.json",
  "tsconfig.json",
  ...readdirSync(join(here, "src")).map((name) => `src/${name}`),
];
const hash = createHash("sha256");
for (const name of files.sort())
  hash
    .update(`${name}\0`)
    .update(readFileSync(join(here, name)))
    .update("\0");
const banner = `/* made from clients/playground, source ${hash.digest("hex")} */`;

await build({
  entryPoints: { playground: join(here, "src/main.tsx"), style: join(here, "src/style.css") },
  outdir: out,
  bundle: true,
  minify: true,
  target: "es2022",
  format: "esm",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "inline",
  banner: { js: banner, css: banner },
  entryNames: "[name]",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(here, "src", name), join(out, name));
