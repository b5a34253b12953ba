"""Answers of a run's model: where they end, and by which settings they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel

from motet.training.run.answers import generate
from motet.training.run.session import Session
from tests.training.run.workshop import chatting, recipe


@pytest.mark.parametrize("tuning", [{"type": "full"}, {"type": "lora", "r": 4}])
def test_answers_end_as_serving_ends_them_and_take_no_other_setting(tmp_path: Path, tuning: dict[str, Any]) -> None:
    """At the template's end, too, and at those of the checkpoint's configuration; without its penalties."""
    hf = chatting(tmp_path)
    session = Session(recipe(tmp_path / "out", tuning=tuning), root=tmp_path)
    model: Any = session.model.eval()
    turn_end, prompt = hf.convert_tokens_to_ids("<|im_end|>"), [5, 6, 7]

    def answer() -> list[int]:
        return generate(model, [prompt], session.preparation, max_tokens=12)[0]

    ids = list(prompt)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    plain = ids[len(prompt) :]
    inner = cast(Any, model.get_base_model() if isinstance(model, PeftModel) else model)
    inner.generation_config.update(repetition_penalty=5.0, suppress_tokens=plain, no_repeat_ngram_size=1)
    own = inner.generation_config
    assert answer() == plain
    own.eos_token_id = [plain[-1]]
    assert answer() == plain[: plain.index(plain[-1])]
    assert inner.generation_config is own
    own.eos_token_id = None
    with torch.no_grad():
        inner.lm_head.weight[turn_end] = 100 * inner.lm_head.weight[plain[0]]
    assert answer() == []
