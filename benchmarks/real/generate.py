"""Transformers' `generate` in a process of its own: `python -m benchmarks.real.generate FOLDER`.

Each line of standard input is {"prompts": [[token ids] …], "tokens": N}, each line of standard output the tokens per
second of drawing N tokens behind every prompt, counted from the token on at which the others begin to count.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from benchmarks.real.contestants import WARM_UP


class Clock(StoppingCriteria):
    """When each token was there."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> Any:
        self.ticks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def rate(model: Any, prompts: list[list[int]], tokens: int) -> float:
    ids, clock = torch.tensor(prompts), Clock()
    total = WARM_UP + tokens
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=total,
        min_new_tokens=total,
        stopping_criteria=[clock],
    )
    return len(prompts) * tokens / (clock.ticks[-1] - clock.ticks[WARM_UP - 1])


def main() -> None:
    model = cast(Any, AutoModelForCausalLM).from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    for line in sys.stdin:
        request = json.loads(line)
        print(rate(model, request["prompts"], request["tokens"]), flush=True)


if __name__ == "__main__":
    main()
