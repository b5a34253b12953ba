"""Anthropic's SDK: `pip install anthropic`. Serve the demo family first (`.venv/bin/motet serve demo`).

It speaks to `/v1/messages`; the base URL has no `/v1`. Log-probs are nothing that Anthropic's API has.
"""

from __future__ import annotations

import os

from anthropic import Anthropic
from anthropic.types import Message, UserMessageParam

client = Anthropic(base_url=os.environ.get("MOTET_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1"), api_key="none")
question = UserMessageParam(role="user", content="In which town was Niatral Treidrulov born?")
# small-chat's manner on large's knowledge: large + (small-chat − small)
composition = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},  # the base reads no question: the expert's voice brings it
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}


def text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# What Anthropic's SDK does not know, the temperature among it, goes into `extra_body`.
greedy = {"temperature": 0}
plain = client.messages.create(model="small-chat", messages=[question], max_tokens=24, extra_body=greedy)
print("plain:", text(plain))

composed = client.messages.create(
    model="large",
    messages=[question],
    max_tokens=24,
    extra_body={**greedy, "composition": composition},
)
print("composed:", text(composed))

# A named composition of the operator's file is a model id like any other.
with client.messages.stream(model="large-proxy", messages=[question], max_tokens=24, extra_body=greedy) as stream:
    print("streamed:", "".join(stream.text_stream))
