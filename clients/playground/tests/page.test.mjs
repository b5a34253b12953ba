// The page in a headless Chromium against a real server of the demo family: MOTET_PAGE (its address), MOTET_LOCKED (that
// of one with a key, MOTET_KEY) and CHROMIUM. Run by tests/end_to_end/test_playground.py.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const { MOTET_PAGE: page_url, MOTET_LOCKED: locked_url, MOTET_KEY: secret, CHROMIUM: executablePath } = process.env;
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

let browser;
before(async () => (browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] })));
after(() => browser.close());

/** A fresh tab; whatever it complains of, and every other machine that it asks, fails the test at its end. */
async function tab(t, options = {}, url = page_url) {
  const context = await browser.newContext({
    viewport: { width: 1200, height: 900 },
    reducedMotion: "reduce",
    ...options,
  });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: new URL(url).origin });
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on(
    "console",
    (message) => message.type() === "error" && !message.text().includes("401") && complaints.push(message.text()),
  );
  page.on(
    "request",
    (request) => new URL(request.url()).origin !== new URL(url).origin && complaints.push(request.url()),
  );
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints, []);
  });
  return page;
}

/** Opens the page and waits for what it offers. */
async function opened(t, options, url) {
  const page = await tab(t, options, url);
  await page.goto(url ?? page_url);
  await page.waitForSelector(".examples");
  return page;
}

async function answered(page, columns) {
  await page.waitForFunction(
    (n) => [...document.querySelectorAll(".state")].filter((line) => / done/.test(line.textContent)).length === n,
    columns,
  );
}

/** Takes an example of the operator's file: two answers beside each other. */
async function compared(t, options, which = 0) {
  const page = await opened(t, options);
  await page.click(`.examples button >> nth=${which}`);
  await answered(page, 2);
  return page;
}

async function violations(page) {
  await page.evaluate(await import("node:fs").then((fs) => fs.readFileSync(axe, "utf8")));
  const found = await page.evaluate(() =>
    globalThis.axe.run(document, {
      runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }),
  );
  return found.violations.map(
    (one) =>
      `${one.id}: ${one.nodes
        .map((node) => node.html)
        .join(" | ")
        .slice(0, 400)}`,
  );
}

/** The request that the page copies, sent by this process: the API's own answer with traces. */
async function asked(page, column = 0) {
  await page.click(`.column >> nth=${column} >> text=Copy as curl or Python`);
  const curl = await page.textContent("dialog pre");
  await page.keyboard.press("Escape");
  await page.waitForSelector("dialog", { state: "detached" });
  const [, path] = curl.match(/^curl (?:https?:\/\/[^/]+)(\S+)/);
  const body = JSON.parse(curl.match(/-d '(.*)'\n$/s)[1].replaceAll("'\\''", "'"));
  const response = await fetch(page_url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, trace: { top: 8, members: true } }),
  });
  assert.equal(response.status, 200);
  return (await response.json()).choices[0].motet.trace;
}

const written = (value) => {
  const text = value.toFixed(3);
  return Number(text) === 0 ? "0.000" : text.replace("-", "−");
};
/** A number as the page shows it; the last digit may be rounded the other way: batches of other sizes round otherwise. */
function close(shown, value, name) {
  if (value <= -9999) return assert.ok(["−∞", "ruled out"].includes(shown), name);
  assert.ok(Math.abs(Number(shown.replace("−", "-")) - value) < 2e-3, `${name}: ${shown} is not ${written(value)}`);
}

async function checkPanel(page, trace) {
  for (const name of ["logprob", "kl"]) close(await page.textContent(`.panel [data-of=${name}]`), trace[name], name);
  for (const [role, value] of Object.entries(trace.members)) {
    const row = `.panel tr[data-role="${role}"]`;
    close(await page.textContent(`${row} [data-of=member]`), value, role);
    assert.equal(Number(await page.textContent(`${row} [data-of=rank]`)), trace.ranks[role] + 1);
    close(await page.textContent(`${row} [data-of=push]`), trace.push[role], `push of ${role}`);
  }
  assert.equal(await page.locator(".panel tr[data-token]").count(), trace.alternatives.length);
  for (const one of trace.alternatives) {
    const row = `.panel tr[data-token="${one.token_id}"]`;
    close(await page.textContent(`${row} [data-of=composed]`), one.logprob, one.token);
    for (const [role, value] of Object.entries(one.members))
      close(await page.textContent(`${row} [data-of="member-${role}"]`), value, `${one.token}, ${role}`);
  }
}

test("panels show the numbers of the API's trace, token by token", async (t) => {
  const page = await compared(t);
  const trace = await asked(page);
  const shown = await page.$$eval("#page .column:first-child [role=option]", (tokens) => tokens.length);
  assert.equal(shown, trace.length);
  for (let i = 0; i < Math.min(trace.length, 6); i++) {
    await page.click(`#A-${i}`);
    await page.waitForSelector(`.panel[aria-label="Token ${i + 1} of answer A"]`);
    await checkPanel(page, trace[i]);
  }
});

test("colours are those of the chosen push, and tokens that moved are marked", async (t) => {
  const page = await compared(t);
  const trace = await asked(page);
  const shade = (nats) => (nats < 0 ? -1 : 1) * [0.1, 0.7, 2, 5].filter((edge) => Math.abs(nats) >= edge).length;
  const near = (nats) => [0.1, 0.7, 2, 5].some((edge) => Math.abs(Math.abs(nats) - edge) < 5e-3);
  const check = async (numbers) => {
    for (const [i, value] of numbers.entries())
      if (!near(value))
        assert.match(await page.getAttribute(`#A-${i}`, "class"), new RegExp(`\\bs${shade(value) || 0}(?![\\d])`));
  };
  await check(trace.map((one) => one.logprob - one.members.base));
  await page.selectOption("#measure", "push expert");
  await check(trace.map((one) => one.push.expert));
  await page.selectOption("#measure", "kl");
  await check(trace.map((one) => one.kl));
  for (const [i, one] of trace.entries())
    assert.equal(/\bmoved\b/.test(await page.getAttribute(`#A-${i}`, "class")), one.argmax_moved);
});

test("the first token that differs is marked in both answers", async (t) => {
  const page = await compared(t);
  const [one, other] = [await asked(page, 0), await asked(page, 1)];
  const first = one.findIndex((token, i) => other[i] && token.token_id !== other[i].token_id);
  assert.deepEqual(await page.$$eval(".tokens .differs", (tokens) => tokens.map((token) => token.id)), [
    `A-${first}`,
    `B-${first}`,
  ]);
});

test("another strength is shown without a request, with the odds that the server computes", async (t) => {
  const page = await compared(t);
  await page.click("#A-0");
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  await page.locator(".panel input[type=range]").fill("0.5");
  assert.match(await page.textContent(".panel .slider label"), /alpha = 0\.50/);
  const shares = Object.fromEntries(
    await page.$$eval(".panel tr[data-token]", (rows) =>
      rows.map((row) => [row.dataset.token, parseFloat(row.querySelector("[data-of=share]").textContent)]),
    ),
  );
  assert.deepEqual(requests, []);

  const question = await page.textContent(".asked");
  const composition = {
    strategy: "proxy_tuning",
    base: { model: "large", prompt: "" },
    expert: "small-chat",
    antiexpert: { model: "small", prompt: "" },
    alpha: 0.5,
  };
  const body = {
    model: "large",
    composition,
    messages: [{ role: "user", content: question }],
    max_tokens: 1,
    temperature: 0,
    trace: { top: 20, members: true },
  };
  const response = await fetch(`${page_url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const known = new Map(
    (await response.json()).choices[0].motet.trace[0].alternatives.map((one) => [
      String(one.token_id),
      Math.exp(one.logprob),
    ]),
  );
  const common = Object.keys(shares).filter((token) => known.has(token));
  assert.ok(common.length >= 3);
  const mine = common.reduce((sum, token) => sum + shares[token], 0);
  const theirs = common.reduce((sum, token) => sum + known.get(token), 0);
  for (const token of common) assert.ok(Math.abs(shares[token] / mine - known.get(token) / theirs) < 0.004, token);
});

test("an answer goes on from an alternative", async (t) => {
  const page = await compared(t);
  const before = await asked(page);
  await page.click("#A-1");
  const other = before[1].alternatives.find((one) => one.token_id !== before[1].token_id && one.token !== "<|end|>");
  await page.click(`.panel tr[data-token="${other.token_id}"] button`);
  await page.waitForFunction(
    (token) => document.querySelector(`.panel tr.chosen`)?.dataset.token === token,
    String(other.token_id),
  );
  await answered(page, 2);
  const kept = await page.textContent("#A-0");
  assert.equal(kept, before[0].token);
  assert.equal((await page.textContent("#A-1")).trim(), other.token.trim());
  close(await page.textContent(".panel [data-of=logprob]"), other.logprob, "the alternative's own log-prob");
  const after = await asked(page); // what is copied begins in the same way
  assert.deepEqual(
    after.slice(0, 2).map((one) => one.token_id),
    [before[0].token_id, other.token_id],
  );
  await page.click("text=back to its own beginning");
  await answered(page, 2);
  const ids = (trace) => trace.map((one) => one.token_id);
  assert.deepEqual(ids(await asked(page)), ids(before));
});

test("a conversation goes on, and the link holds it all but the key", async (t) => {
  const page = await opened(t);
  await page.click("text=Sampling and traces");
  await page.getByLabel("max_tokens").fill("8");
  await page.click(".examples button >> nth=0");
  await answered(page, 2);
  const first = await page.textContent(".asked");
  await page.fill("#draft", "And where is it?");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".asked").length === 2);
  await answered(page, 2);
  const [body] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.click("text=Again")]);
  const { messages } = body.postDataJSON();
  assert.deepEqual(
    messages.map((message) => message.role),
    ["user", "assistant", "user"],
  );
  assert.equal(messages[0].content, first);
  await answered(page, 2);

  await page.click("text=Copy link");
  await page.waitForSelector("text=Link copied");
  const link = await page.evaluate(() => navigator.clipboard.readText());
  const second = await tab(t);
  await second.goto(link);
  await second.waitForSelector(".asked");
  assert.deepEqual(await second.$$eval(".asked", (turns) => turns.map((turn) => turn.textContent)), [
    first,
    "And where is it?",
  ]);
  assert.equal(await second.locator(".column").count(), 2);
  assert.equal(await second.locator(".examples").count(), 0);
  assert.equal((await second.textContent(".ask .main")).trim(), "Answer");
  const [again] = await Promise.all([second.waitForRequest("**/v1/chat/completions"), second.click(".ask .main")]);
  assert.deepEqual(again.postDataJSON().messages, messages);
  await answered(second, 2);
  await second.click("text=begin anew");
  await second.waitForSelector(".examples");
  assert.equal(await second.locator(".asked").count(), 0);
});

test("a link that is broken opens the page as it is", async (t) => {
  const page = await tab(t);
  for (const hash of ["nonsense", btoa('{"voices":[]}'), btoa('{"turns":"x","voices":7}'), btoa("[1]")]) {
    await page.goto("about:blank");
    await page.goto(`${page_url}/#${hash}`);
    await page.waitForSelector(".examples");
  }
});

test("a composition is written by hand: strategy, members, strength, stack", async (t) => {
  const page = await opened(t);
  await page.selectOption("select >> nth=0", "large");
  await page.selectOption("select >> nth=1", "compose");
  await page.click("text=add to compose");
  const parts = page.locator("fieldset fieldset.entry");
  assert.equal(await parts.count(), 2);
  await parts.nth(1).locator("select").first().selectOption("rules");
  await parts.nth(1).getByLabel("repetition", { exact: true }).fill("0.5");
  await page.fill("#draft", "Hello");
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.keyboard.press("Enter")]);
  const { composition, model } = request.postDataJSON();
  assert.equal(model, "large");
  assert.equal(composition.compose[0].strategy, "proxy_tuning");
  assert.deepEqual(composition.compose[1], { strategy: "rules", repetition: 0.5 });
  await answered(page, 1);
});

test("a composition begins with the operator's own, else with whom the roles were made for", async (t) => {
  const page = await opened(t);
  await page.fill("#draft", "Hello");
  const begun = async (base, strategy) => {
    await page.locator(".setup").evaluate((details) => (details.open = true));
    await page.selectOption(".composer select >> nth=0", base);
    await page.selectOption(".composer select >> nth=1", strategy);
    const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.click(".ask .main")]);
    await answered(page, 1);
    return request.postDataJSON().composition;
  };
  const { data } = await (await fetch(`${page_url}/v1/models`)).json();
  assert.deepEqual(await begun("large", "proxy_tuning"), data.find((card) => card.id === "large-proxy").composition);
  const proxy = { strategy: "proxy_tuning", expert: "small-chat", antiexpert: "small" };
  assert.deepEqual(await begun("large-chat", "proxy_tuning"), proxy);
  await page.locator(".setup").evaluate((details) => (details.open = true));
  const offered = (name) => page.getByLabel(name, { exact: true }).locator("option").allTextContents();
  assert.equal((await offered("expert"))[0], "small-chat");
  assert.equal((await offered("antiexpert"))[0], "small");
  const tuned = { strategy: "eft", tuned: "small-courteous", reference: "small-chat", beta: 1.5 };
  assert.deepEqual(await begun("large-chat", "eft"), tuned);
  assert.deepEqual(await begun("small-chat", "novelty"), { strategy: "novelty", untuned: "small" });
  const other = { strategy: "unlearn", assistant: "small" }; // the assistant was made for large-chat
  assert.deepEqual(await begun("retain-only", "unlearn"), other);
});

test("a schedule is begun with one press; what is refused is said beside the fields that it is about", async (t) => {
  const page = await opened(t);
  page.removeAllListeners("console"); // the browser complains of a 400
  await page.click("text=add schedule");
  await page.fill("#draft", "Hello");
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.keyboard.press("Enter")]);
  assert.deepEqual(request.postDataJSON().composition.schedule, { warmup: 1 });
  await answered(page, 1);
  await page.locator(".setup").evaluate((details) => (details.open = true));
  await page.getByLabel("points (JSON)").fill('[{"token": 1, "scale": 0}]');
  await page.click(".ask .main");
  await page.waitForSelector("[role=alert] >> text=composition.schedule");
  assert.ok(await page.getByLabel("points (JSON)").isVisible());
});

test("every strategy that the engine runs can be begun with one choice, and is answered", async (t) => {
  const page = await opened(t);
  await page.selectOption("select >> nth=0", "large");
  const names = await page.$$eval(".composer select >> nth=1 >> option", (options) =>
    options.filter((one) => one.value && !one.disabled).map((one) => one.value),
  );
  const { data } = await (await fetch(`${page_url}/v1/strategies`)).json();
  assert.deepEqual(
    names,
    data.filter((one) => one.unsupported === null).map((one) => one.id),
  );
  await page.click("text=Sampling and traces");
  await page.getByLabel("max_tokens").fill("8");
  for (const name of names) {
    await page.locator(".setup").evaluate((details) => (details.open = true));
    await page.selectOption(".composer select >> nth=1", name);
    if (name === names[0]) await page.fill("#draft", "Hello there");
    const [response] = await Promise.all([page.waitForResponse("**/v1/chat/completions"), page.click(".ask .main")]);
    assert.equal(
      response.status(),
      200,
      `${name}: ${response.request().postData()} ${response.status() === 200 ? "" : await response.text()}`,
    );
    await answered(page, 1);
  }
});

test("an answer beside others is asked for when all are", async (t) => {
  const page = await compared(t);
  await page.click("text=+ compare with another");
  assert.equal(await page.locator(".column").count(), 3);
  assert.equal(await page.locator(".state").count(), 2);
  await page.click(".ask .main");
  await answered(page, 3);
  await page.click('[aria-label="Remove answer C"]');
  assert.equal(await page.locator(".column").count(), 2);
});

test("a completion is asked as one", async (t) => {
  const page = await opened(t);
  await page.click("text=Completion");
  await page.fill("#draft", "The river");
  const [request] = await Promise.all([page.waitForRequest("**/v1/completions"), page.keyboard.press("Enter")]);
  assert.equal(request.postDataJSON().prompt, "The river");
  await answered(page, 1);
});

/** Answers what is asked next with `tokens`, as the server streams them with traces. */
async function answering(page, tokens) {
  const trace = (token, token_id) => ({
    ...{ token, token_id, logprob: -1, members: { base: -1.5 }, kl: 0.1, base_rank: 0, shift: "unshifted" },
    ...{ argmax_moved: false, top: { base: [], composed: [] }, ranks: { base: 0 }, push: null, alternatives: [] },
  });
  const chunks = tokens.map((token, i) => ({ choices: [{ text: token, motet: { trace: [trace(token, i)] } }] }));
  const body = [...chunks.map((chunk) => JSON.stringify(chunk)), "[DONE]"].map((data) => `data: ${data}\n\n`).join("");
  await page.route("**/v1/completions", (route) =>
    route.fulfill({ status: 200, contentType: "text/event-stream", body }),
  );
}

test("a long text is laid out in sections, where every token stands as in one", async (t) => {
  const page = await tab(t);
  const words = [" a", " word", "s", ", which", " goes", " on", "大学", "に", " extraordinarily", "·long", ".\n\n", "  x"];
  const tokens = Array.from({ length: 1500 }, (_, i) => words[(i * i + (i >> 3)) % words.length]);
  await answering(page, tokens);
  await page.goto(page_url);
  await page.click("text=Completion");
  await page.fill("#draft", "Begin");
  await page.keyboard.press("Enter");
  await answered(page, 1);
  for (const width of [1200, 700, 1000]) {
    // where the text gets another width, its sections are others, too
    await page.evaluate(() => {
      const box = document.querySelector(".tokens");
      for (const section of document.querySelectorAll(".section + .section")) section.dataset.width = box.clientWidth;
    });
    await page.setViewportSize({ width, height: 900 });
    await page.waitForFunction(() => {
      const sections = [...document.querySelectorAll(".section")];
      const now = String(document.querySelector(".tokens").clientWidth);
      return sections.length > 8 && sections.every(({ dataset }) => dataset.width === undefined || dataset.width === now);
    });
    const [cut, whole, copied] = await page.evaluate(() => {
      const box = document.querySelector(".tokens");
      const places = () =>
        [...document.querySelectorAll("[role=option]")].map((token) => {
          const line = [...token.getClientRects()].at(-1);
          return [line.right, line.top + box.scrollTop];
        });
      const cut = places();
      getSelection().selectAllChildren(box);
      const copied = getSelection().toString();
      getSelection().removeAllRanges();
      for (const section of document.querySelectorAll(".section")) {
        section.style.display = "inline";
        section.style.textIndent = "0";
      }
      const whole = places();
      for (const section of document.querySelectorAll(".section")) section.removeAttribute("style");
      return [cut, whole, copied];
    });
    const moved = cut.map(([right, top], i) => Math.max(Math.abs(right - whole[i][0]), Math.abs(top - whole[i][1])));
    assert.ok(Math.max(...moved) < 1, `token ${moved.findIndex((pixels) => pixels >= 1)} moved at ${width}`);
    assert.equal(copied, tokens.join(""));
  }
});

test("what the server refuses is said in its words", async (t) => {
  const page = await tab(t);
  page.on("console", () => {});
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill({
      status: 200,
      contentType: "text/event-stream",
      body: 'data: {"error": {"message": "No room for that.", "param": null}}\n\ndata: [DONE]\n\n',
    }),
  );
  await page.goto(page_url);
  await page.fill("#draft", "Hello");
  await page.keyboard.press("Enter");
  await page.waitForSelector("[role=alert]");
  assert.equal((await page.textContent("[role=alert]")).trim(), "No room for that.");
});

test("a pressed token's panel can be seen on a phone, and arrow keys leave the text where it is", async (t) => {
  const page = await compared(t, { viewport: { width: 390, height: 844 } });
  const bar = async () => (await page.locator(".ask").boundingBox()).y;
  await page.click("#A-1");
  await page.waitForSelector(".panel");
  const { y } = await page.locator(".panel").boundingBox();
  assert.ok(y >= 0 && y < 0.65 * (await bar()), `the panel begins at ${y}`);
  const voices = page.locator(".voices");
  assert.ok(
    await voices.evaluate((table) => table.parentElement.scrollWidth <= table.parentElement.clientWidth),
    "pushes are not cut off",
  );
  await page.keyboard.press("Escape");
  await page.evaluate(() => scrollTo(0, 0));
  await page.focus("[role=listbox]");
  await page.keyboard.press("ArrowRight");
  await page.waitForSelector(".panel");
  assert.ok((await page.locator("#A-0").boundingBox()).y < (await bar()), "the token can still be seen");
});

test("it is walked by the keyboard alone", async (t) => {
  const page = await opened(t);
  for (let i = 0; i < 12 && !(await page.evaluate(() => document.activeElement.closest(".examples"))); i++)
    await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await answered(page, 2);
  for (let i = 0; i < 30 && (await page.evaluate(() => document.activeElement.getAttribute("role"))) !== "listbox"; i++)
    await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.getAttribute("[role=listbox]", "aria-activedescendant"), "A-1");
  await page.waitForSelector('.panel[aria-label="Token 2 of answer A"]');
  await page.keyboard.press("Escape");
  await page.waitForSelector(".panel", { state: "detached" });
});

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1200, 375]) {
    test(`axe finds nothing: ${colorScheme}, ${width} wide`, async (t) => {
      // a window that shows all: what is scrolled half under the bar would be no target
      const page = await opened(t, { colorScheme, viewport: { width, height: 4000 } });
      assert.deepEqual(await violations(page), []);
      await page.click(".examples button >> nth=0");
      await answered(page, 2);
      await page.click("#A-1");
      await page.waitForSelector(".panel");
      await page
        .locator(".setup")
        .first()
        .evaluate((details) => (details.open = true));
      assert.deepEqual(await violations(page), []);
      assert.ok(
        await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth),
        "nothing is wider than the screen",
      );
      await page.click(".column >> nth=0 >> text=Copy as curl or Python");
      assert.deepEqual(await violations(page), []);
    });
  }
}

test("a key is asked for, kept in the session, and stands in nothing that is copied", async (t) => {
  const page = await tab(t, {}, locked_url);
  await page.goto(locked_url);
  await page.fill("#key", "wrong");
  await page.click("text=Use it");
  await page.waitForSelector("text=does not know that key");
  assert.deepEqual(await violations(page), []);
  await page.fill("#key", secret);
  await page.click("text=Use it");
  await page.waitForSelector(".examples");
  await page.click(".examples button >> nth=0");
  await answered(page, 2);
  await page.waitForTimeout(300);
  await page.click(".column >> nth=0 >> text=Copy as curl or Python");
  for (const form of ["curl", "Python"]) {
    await page.click(`dialog button >> text=${form}`);
    const text = await page.textContent("dialog pre");
    assert.ok(text.includes("MOTET_API_KEY") && !text.includes(secret));
  }
  const kept = await page.evaluate(() => [
    location.href,
    JSON.stringify(localStorage),
    document.cookie,
    sessionStorage.getItem("motet-key"),
  ]);
  assert.ok(!atob(kept[0].split("#")[1].replaceAll("-", "+").replaceAll("_", "/")).includes(secret));
  assert.deepEqual(kept.slice(1), ["{}", "", secret]);
});

test("while models load it says so and tries again; only a refused key is called unknown", async (t) => {
  const page = await tab(t, {}, locked_url);
  page.removeAllListeners("console"); // the browser complains of a 503
  const loading = {
    status: 503,
    headers: { "retry-after": "1" },
    json: { error: { message: "The models are being loaded.", type: "server_error", param: null, code: "loading" } },
  };
  let loads = false;
  const asked = [];
  await page.route("**/v1/models", (route) => {
    asked.push(route.request().headers().authorization);
    return loads ? route.fulfill(loading) : route.continue();
  });
  await page.goto(locked_url);
  await page.waitForSelector("#key");
  assert.equal(await page.locator("text=does not know that key").count(), 0, "no key was given yet");
  loads = true;
  await page.route("**/v1/strategies", (route) => (loads ? route.fulfill(loading) : route.continue()));
  await page.fill("#key", secret);
  await page.click("text=Use it");
  await page.waitForSelector("[role=status] >> text=The models are being loaded. This page tries again by itself.");
  assert.equal(await page.locator("#key").count(), 0);
  assert.equal(await page.locator("text=does not know that key").count(), 0);
  assert.deepEqual(await violations(page), []);
  const before = asked.length;
  await page.waitForTimeout(2500);
  assert.ok(asked.length >= before + 2, "it tries again");
  loads = false;
  await page.waitForSelector(".examples");
  assert.equal(asked.at(-1), `Bearer ${secret}`);
});
