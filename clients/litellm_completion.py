"""LiteLLM: `pip install litellm`. Serve the demo family first (`.venv/bin/motet serve demo`).

Not served today, and refused with a 400 that says so: `litellm.responses`.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks another machine for prices
import litellm

# small-chat's manner on large's knowledge: large + (small-chat − small)
COMPOSITION = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},  # the base reads no question: the expert's voice brings it
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}


def ask(model: str, **more: Any) -> Any:
    """`hosted_vllm/` makes LiteLLM pass on all that vLLM's server takes; fields beyond go into `extra_body`."""
    return litellm.completion(
        model=f"hosted_vllm/{model}",
        api_base=os.environ.get("MOTET_URL", "http://127.0.0.1:8000/v1"),
        api_key="none",
        messages=[{"role": "user", "content": "In which town was Niatral Treidrulov born?"}],
        temperature=0,
        max_tokens=24,
        **more,
    )


print("plain:", ask("small-chat").choices[0].message.content)
print("composed:", ask("large", extra_body={"composition": COMPOSITION}).choices[0].message.content)
# A named composition of the operator's file is a model id like any other.
print("streamed:", "".join(chunk.choices[0].delta.content or "" for chunk in ask("large-proxy", stream=True)))
# Log-probs are those of the composed distribution.
scored = ask("large", logprobs=True, top_logprobs=2, extra_body={"composition": COMPOSITION})
content = scored.choices[0].logprobs["content"]
print("log-probs:", [round(token["logprob"], 3) for token in content])
