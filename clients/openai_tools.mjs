// Tools with the openai SDK for Node: `npm install` beside this file, then `node openai_tools.mjs`.
// The SDK runs the function that the model calls, sends the result back, and gives the final answer.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.MOTET_URL ?? "http://127.0.0.1:8000/v1", apiKey: "none" });
const runner = client.chat.completions.runTools({
  model: process.env.MOTET_MODEL ?? "large-proxy",
  stream: process.env.MOTET_STREAM === "1",
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
        parse: JSON.parse,
        function: ({ city }) => {
          console.log("called:", city);
          return `Sunny in ${city}`;
        },
      },
    },
  ],
});
console.log("answer:", await runner.finalContent());
