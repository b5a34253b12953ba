// The openai SDK for Node: `npm install` beside this file, then `node openai_sdk.mjs`.
// Not served today, and refused with a 400 that says so: `client.responses` (use chat completions).
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.MOTET_URL ?? "http://127.0.0.1:8000/v1", apiKey: "none" });
const messages = [{ role: "user", content: "In which town was Niatral Treidrulov born?" }];
const fixed = { messages, temperature: 0, max_tokens: 24 };
// small-chat's manner on large's knowledge: large + (small-chat − small)
const composition = {
  strategy: "proxy_tuning",
  base: { model: "large", prompt: "" }, // the base reads no question: the expert's voice brings it
  expert: "small-chat",
  antiexpert: { model: "small", prompt: "" },
};

const plain = await client.chat.completions.create({ model: "small-chat", ...fixed });
console.log("plain:", plain.choices[0].message.content);

// Node's SDK has no `extra_body`: a field that it does not know is sent as it stands.
// In TypeScript, put `// @ts-expect-error` before the field.
const composed = await client.chat.completions.create({ model: "large", ...fixed, composition });
console.log("composed:", composed.choices[0].message.content);

// A named composition of the operator's file is a model id like any other.
const stream = await client.chat.completions.create({ model: "large-proxy", ...fixed, stream: true });
let streamed = "";
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
console.log("streamed:", streamed);

// Log-probs are those of the composed distribution.
const scored = await client.chat.completions.create({
  model: "large",
  ...fixed,
  composition,
  logprobs: true,
  top_logprobs: 2,
});
console.log("log-probs:", JSON.stringify(scored.choices[0].logprobs.content.map((token) => token.logprob)));
