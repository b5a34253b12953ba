"""LangChain: `pip install langchain-openai`. Serve the demo family first (`.venv/bin/motet serve demo`).

`bind_tools` and agents work on it. Not served today, and refused with a 400 that says so: `use_responses_api=True`.
"""

from __future__ import annotations

import os

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

QUESTION = "In which town was Niatral Treidrulov born?"
# small-chat's manner on large's knowledge: large + (small-chat − small)
COMPOSITION: dict[str, object] = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},  # the base reads no question: the expert's voice brings it
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}


def chat(model: str, composition: dict[str, object] | None = None, logprobs: bool | None = None) -> ChatOpenAI:
    """A chat model of the server; what OpenAI's API does not know goes into `extra_body`."""
    return ChatOpenAI(
        base_url=os.environ.get("MOTET_URL", "http://127.0.0.1:8000/v1"),
        api_key=SecretStr("none"),
        model=model,
        temperature=0,
        max_completion_tokens=24,
        logprobs=logprobs,
        extra_body={} if composition is None else {"composition": composition},
    )


print("plain:", chat("small-chat").invoke(QUESTION).text)
print("composed:", chat("large", COMPOSITION).invoke(QUESTION).text)
# A named composition of the operator's file is a model id like any other.
print("streamed:", "".join(chunk.text for chunk in chat("large-proxy").stream(QUESTION)))
# Log-probs are those of the composed distribution.
content = chat("large", COMPOSITION, logprobs=True).invoke(QUESTION).response_metadata["logprobs"]["content"]
print("log-probs:", [round(token["logprob"], 3) for token in content])
