// What the page costs a browser, as JSON: first paints, and the frames while a long traced answer is written. Run by
// benchmarks/playground.py: MOTET_PAGE, CHROMIUM, TOKENS (of the answer), ROUNDS (of first paints).

import { chromium } from "playwright-core";

const { MOTET_PAGE: url, CHROMIUM: executablePath } = process.env;
const tokens = Number(process.env.TOKENS);
const CATEGORIES = ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"];
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

async function firstPaint() {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
  const page = await context.newPage();
  await page.goto(url);
  await page.waitForSelector(".composer");
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
  const ready = await page.evaluate(() => performance.now());
  await context.close();
  return { paint, ready };
}

/** Asks for one answer of `tokens` tokens with traces, selects a token in the middle of it, and watches the frames. */
async function longAnswer() {
  const page = await (await browser.newContext({ viewport: { width: 1200, height: 900 } })).newPage();
  await page.route("**/v1/completions", (route) =>
    route.continue({
      postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true, max_tokens: tokens }),
    }),
  );
  await page.goto(url);
  await page.click("text=Completion");
  await page.fill("#draft", "t10 t11 t12");
  await browser.startTracing(page, { categories: CATEGORIES });
  await page.evaluate(() => {
    const gaps = (globalThis.gaps = []);
    let last = performance.now();
    requestAnimationFrame(function next(now) {
      gaps.push(now - last);
      last = now;
      requestAnimationFrame(next);
    });
  });
  await page.click(".ask .main");
  await page.waitForFunction((n) => document.querySelectorAll("[role=option]").length > n, tokens / 2, { timeout: 0 });
  await page.evaluate(() => document.querySelector("#A-100").click());
  await page.waitForFunction(() => / done/.test(document.querySelector(".state").textContent), null, { timeout: 0 });
  await page.focus("[role=listbox]");
  for (const key of ["End", "ArrowLeft", "ArrowUp", "Home", "ArrowRight"]) await page.keyboard.press(key);
  const gaps = await page.evaluate(() => globalThis.gaps);
  const count = await page.locator("[role=option]").count();
  const state = await page.textContent(".state");
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString());
  return { tokens: count, state, gaps: summary(gaps), tasks: tasks(traceEvents) };
}

/** The tasks of the page's main thread: wall and processor milliseconds. */
function tasks(events) {
  const mains = new Set(
    events
      .filter((one) => one.name === "thread_name" && one.args.name === "CrRendererMain")
      .map((one) => `${one.pid}.${one.tid}`),
  );
  const run = events.filter((one) => one.name === "RunTask" && one.ph === "X" && mains.has(`${one.pid}.${one.tid}`));
  const wall = run.map((one) => one.dur / 1000);
  return {
    wall: summary(wall),
    // a thread's clock counts in steps: no task takes longer than it lasts
    processor: summary(run.map((one) => Math.min(one.tdur ?? one.dur, one.dur) / 1000)),
    above_50_ms: wall.filter((ms) => ms > 50).length,
  };
}

function summary(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share) => Math.round(100 * sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]) / 100;
  return { count: sorted.length, p50: at(0.5), p99: at(0.99), max: at(1) };
}

const paints = [];
for (let i = 0; i < Number(process.env.ROUNDS); i++) paints.push(await firstPaint());
const answer = await longAnswer();
console.log(
  JSON.stringify({
    browser: browser.version(),
    first_paint_ms: summary(paints.map((one) => one.paint)),
    usable_ms: summary(paints.map((one) => one.ready)),
    answer,
  }),
);
await browser.close();
