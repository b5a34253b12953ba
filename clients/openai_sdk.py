"""The openai SDK. Serve the demo family first (`make demo`, then `.venv/bin/motet serve demo`).

Not served today, and refused with a 400 that says so: `client.responses` (use chat completions).
"""

from __future__ import annotations

import os

from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

client = OpenAI(base_url=os.environ.get("MOTET_URL", "http://127.0.0.1:8000/v1"), api_key="none")
question = ChatCompletionUserMessageParam(role="user", content="In which town was Niatral Treidrulov born?")
# small-chat's manner on large's knowledge: large + (small-chat − small)
composition = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},  # the base reads no question: the expert's voice brings it
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}

plain = client.chat.completions.create(model="small-chat", messages=[question], temperature=0, max_tokens=24)
print("plain:", plain.choices[0].message.content)

# What OpenAI's API does not know goes into `extra_body`.
composed = client.chat.completions.create(
    model="large",
    messages=[question],
    temperature=0,
    max_tokens=24,
    extra_body={"composition": composition},
)
print("composed:", composed.choices[0].message.content)

# A named composition of the operator's file is a model id like any other.
stream = client.chat.completions.create(
    model="large-proxy", messages=[question], temperature=0, max_tokens=24, stream=True
)
pieces = (chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
print("streamed:", "".join(pieces))

# Log-probs are those of the composed distribution.
scored = client.chat.completions.create(
    model="large",
    messages=[question],
    temperature=0,
    max_tokens=24,
    logprobs=True,
    top_logprobs=2,
    extra_body={"composition": composition},
)
logprobs = scored.choices[0].logprobs
print("log-probs:", [round(token.logprob, 3) for token in (logprobs.content if logprobs else None) or []])
