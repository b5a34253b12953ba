"""Anthropic's SDK: `pip install anthropic`. Serve the demo family first (`.venv/bin/motet serve demo`).

It speaks to `/v1/messages`; the base URL has no `/v1`. Log-probs are nothing that Anthropic's API has.
"""

from __future__ import annotations

import os

from anthropic import Anthropic
from anthropic.types import Message, MessageParam

client = Anthropic(base_url=os.environ.get("MOTET_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1"), api_key="none")
question = MessageParam(role="user", content="In which town was Niatral Treidrulov born?")
# small-chat's manner on large's knowledge: large + (small-chat − small)
composition = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},  # the base reads no question: the expert's voice brings it
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}


def text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


plain = client.messages.create(model="small-chat", messages=[question], temperature=0, max_tokens=24)
print("plain:", text(plain))

# What Anthropic's API does not know goes into `extra_body`.
composed = client.messages.create(
    model="large",
    messages=[question],
    temperature=0,
    max_tokens=24,
    extra_body={"composition": composition},
)
print("composed:", text(composed))

# A named composition of the operator's file is a model id like any other.
with client.messages.stream(model="large-proxy", messages=[question], temperature=0, max_tokens=24) as stream:
    print("streamed:", "".join(stream.text_stream))
