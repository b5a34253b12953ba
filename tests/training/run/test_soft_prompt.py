"""A soft prompt from a recipe to its folder, which PEFT and the server load, and to the server's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.experts.check import check_bundle
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.training.recipe import Recipe
from motet.training.run.errors import RunError
from motet.training.run.preparation import prepare
from motet.training.run.train import train
from tests.training.run.workshop import recipe

TOKENS = 6
IDS = (3, 9, 4, 11, 7)


def spul(output: Path, **changes: Any) -> Recipe:
    data = {name: {"files": ["train.jsonl"]} for name in ("refusals", "retain")}
    sections: dict[str, Any] = {
        "tuning": {"type": "soft_prompt", "tokens": TOKENS, "text": "How is the old house?"},
        "objective": {"type": "spul", "kl_weight": 0.1},
        "data": data,
        "batch": {"rows": 4, "packing": "fit", "max_length": 64},
        "optimizer": {"type": "adamw", "lr": 0.05},
        "schedule": {"steps": 6, "warmup": 0},
        "expert": {"role": "base"},
    }
    return recipe(output, **sections | changes)


async def test_what_is_trained_is_served(root: Path, tmp_path: Path) -> None:
    output, told = tmp_path / "prompt", list[str]()
    train(spul(output), root=root, report=told.append)
    losses = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert min(losses[-3:]) < losses[0]
    assert any("a soft prompt of 6 virtual tokens in front of base" in line for line in told)
    bundle, findings = check_bundle(output)
    assert findings.problems == []
    assert bundle is not None
    assert (bundle.objective, bundle.virtual_tokens, bundle.role) == ("spul", TOKENS, "base")
    assert "A soft prompt of 6 virtual tokens" in (output / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64)
    with torch.no_grad():
        logits = cast(Any, PeftModel.from_pretrained(base, output))(torch.tensor([IDS])).logits[0, TOKENS:]
    file = tmp_path / "models.yaml"
    file.write_text("\n".join(line[13:] for line in told if line.startswith(" " * 13)))
    tree = yaml.safe_load(file.read_text())
    assert list(tree["models"]) == ["prompt", "plain"]
    engine, registry = load_engine(load(file))
    assert registry.card("prompt")["expert"]["role"] == "base"
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    request = GenerationRequest("r", single("prompt"), (IDS[:1],), params, IDS[1:])
    outputs = [output async for output in engine.generate(request)]
    expected = logits.double().log_softmax(-1)
    for place, said in enumerate(outputs):
        assert said.logprob == pytest.approx(float(expected[place, said.token]), abs=1e-4)
    await engine.close()


def test_what_a_soft_prompt_cannot_be_trained_for(root: Path, tmp_path: Path) -> None:
    refused = {
        "tuning.type: the head of 'gate' is served beside whole models": {
            "objective": {"type": "gate", "assistant": "large"},
            "members": {"large": {"path": "other"}},
            "data": {"train": {"files": ["train.jsonl"]}},
        },
        "tuning.type: each round of self-play begins with the weights": {
            "objective": {"type": "spin"},
            "data": {"train": {"files": ["train.jsonl"]}},
        },
        "tuning.type: must be another one where model.layers cuts": {"model": {"path": "base", "layers": 1}},
    }
    for message, changes in refused.items():
        with pytest.raises(RunError, match=message):
            prepare(spul(tmp_path / "out", **changes), root)
