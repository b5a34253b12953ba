// The openai and Anthropic SDKs for Node: `node features.mjs CLIENT FEATURE` exits with 0 where the feature works.
// The server is $MOTET_URL; $EXPECTED has what plain HTTP answers, by name.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [, , client, feature] = process.argv;
const url = process.env.MOTET_URL;
const { question, composition, tool, schema, said, logprobs } = JSON.parse(process.env.EXPECTED);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const fixed = { messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 16 };
const json = { type: "json_schema", json_schema: { name: "birth", strict: true, schema } };

function isLook(name, input) {
  assert.equal(name, "look");
  assert.ok(["C", "F"].includes(input.unit));
}

const features = {
  openai: {
    async chat() {
      const answer = await openai.chat.completions.create({ model: "small-chat", ...fixed });
      assert.equal(answer.choices[0].message.content, said["small-chat"]);
    },
    async composition() {
      const answer = await openai.chat.completions.create({ model: "large", ...fixed, composition });
      assert.equal(answer.choices[0].message.content, said["large-proxy"]);
    },
    async stream() {
      const chunks = await openai.chat.completions.create({ model: "large-proxy", ...fixed, stream: true });
      let text = "";
      for await (const chunk of chunks) text += chunk.choices[0]?.delta?.content ?? "";
      assert.equal(text, said["large-proxy"]);
    },
    async log_probs() {
      const answer = await openai.chat.completions.create({ model: "large", ...fixed, composition, logprobs: true });
      const ours = answer.choices[0].logprobs.content.map((token) => token.logprob);
      assert.equal(ours.length, logprobs.length);
      ours.forEach((value, i) => assert.ok(Math.abs(value - logprobs[i]) < 1e-3));
    },
    async schema() {
      const body = { ...fixed, model: "large-proxy", max_tokens: 100, response_format: json };
      const answer = await openai.chat.completions.parse(body);
      assert.ok(["Ay", "Bree"].includes(JSON.parse(answer.choices[0].message.content).town));
    },
    async tools() {
      const body = { ...fixed, model: "small-chat", max_tokens: 60, tool_choice: "required" };
      const tools = [{ type: "function", function: tool }];
      const answer = await openai.chat.completions.create({ ...body, tools, parallel_tool_calls: false });
      const call = answer.choices[0].message.tool_calls[0].function;
      isLook(call.name, JSON.parse(call.arguments));
    },
    async responses() {
      const body = { model: "large", input: question, temperature: 0, max_output_tokens: 16, composition };
      assert.equal((await openai.responses.create(body)).output_text, said["large-proxy"]);
      const stream = openai.responses.stream(body);
      let text = "";
      for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
      assert.equal(text, said["large-proxy"]);
      assert.equal((await stream.finalResponse()).output_text, text);
    },
    async refusals() {
      const body = { model: "large", ...fixed, compositon: composition };
      await assert.rejects(openai.chat.completions.create(body), (error) => error.param === "compositon");
    },
  },
  anthropic: {
    async chat() {
      const answer = await anthropic.messages.create({ model: "small-chat", ...fixed });
      assert.equal(answer.content[0].text, said["small-chat"]);
      const count = await anthropic.messages.countTokens({ model: "small-chat", messages: fixed.messages });
      const { input_tokens, cache_read_input_tokens } = answer.usage;
      assert.equal(count.input_tokens, input_tokens + cache_read_input_tokens);
    },
    async composition() {
      const answer = await anthropic.messages.create({ model: "large", ...fixed, composition });
      assert.equal(answer.content[0].text, said["large-proxy"]);
    },
    async stream() {
      const stream = anthropic.messages.stream({ model: "large-proxy", ...fixed });
      assert.equal(await stream.finalText(), said["large-proxy"]);
    },
    async schema() {
      const body = { ...fixed, model: "large-proxy", max_tokens: 100 };
      const answer = await anthropic.messages.create({ ...body, output_config: { format: { type: "json_schema", schema } } });
      assert.ok(["Ay", "Bree"].includes(JSON.parse(answer.content[0].text).town));
    },
    async tools() {
      const tools = [{ name: tool.name, description: tool.description, input_schema: tool.parameters }];
      const tool_choice = { type: "any", disable_parallel_tool_use: true };
      const body = { ...fixed, model: "small-chat", max_tokens: 60, tools, tool_choice };
      const use = (await anthropic.messages.create(body)).content.find((block) => block.type === "tool_use");
      isLook(use.name, use.input);
    },
    async refusals() {
      const body = { model: "large", ...fixed, compositon: composition };
      await assert.rejects(anthropic.messages.create(body), (error) => error.status === 400);
    },
  },
};

await features[client][feature]();
