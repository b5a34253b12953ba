"""Routers from a recipe to what is served: a planted rule, labels by continuations, the validation's own labels."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from motet.experts.bundle import read_bundle
from motet.models.heads import read_head
from motet.training.policies.teacher import LiveTeacher, whole_batches
from motet.training.recipe import Recipe
from motet.training.run.paths import Diverging, common_length
from motet.training.run.session import Session
from motet.training.run.train import train
from tests.training.run.workshop import build, recipe

OBJECTIVE = {"type": "router", "assistant": "large", "top": 8, "width": 32, "blocks": 1}
SPLIT = {"train": {"files": ["train.jsonl"], "loss": "all", "limit": 40}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large` is `base` with other scores of some tokens, which it never chooses. Models like these repeat the last
    token; with wider weights in their layers they do not."""
    folder = build(tmp_path_factory.mktemp("planted"))
    shutil.copytree(folder / "base", folder / "large")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.dim() == 2:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder / "base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.lm_head.weight[torch.arange(len(model.lm_head.weight)) % 3 == 0] = 0.0
    model.save_pretrained(folder / "large")
    return folder


def routing(output: Path, data: dict[str, Any], **changes: Any) -> Recipe:
    objective = OBJECTIVE | changes
    return recipe(
        output, objective=objective, data=data, members={"large": {"path": "large"}}, batch={"rows": 8},
        optimizer={"type": "adamw", "lr": 3e-3}, schedule={"steps": 120, "warmup": 5},
    )  # fmt: skip


def test_a_planted_rule_is_learnt_and_calibrated(planted: Path, tmp_path: Path) -> None:
    """The large model differs where the small one would choose a token of every third id; records are held back."""
    lines: list[str] = []
    data = SPLIT | {"validation": {"files": ["train.jsonl"], "loss": "all"}}
    output = train(routing(tmp_path / "out", data), root=planted, report=lines.append)
    bundle = read_bundle(output)
    assert bundle is not None
    assert bundle.head is not None
    threshold = bundle.head.threshold
    assert threshold is not None
    assert bundle.evaluation["marked tokens of the assistant (recall)"] >= 0.95
    assert bundle.evaluation["assistant's tokens that are marked (precision)"] > 0.9
    assert f"routes above {threshold:.4g}" in (output / "README.md").read_text()
    assert any(line.startswith("validation ") for line in lines)
    assert not (output / "teacher").exists()
    session = Session(routing(tmp_path / "again", data), root=planted)
    head = read_head(output, bundle.head.made(16))
    own: Any = session.policies.trained
    for batch in whole_batches(session.preparation.datasets["train"], session.preparation.pad_id):
        seen = own.seen(batch)
        rule = seen.logits.argmax(-1) % 3 == 0
        assert 0.1 < float(rule.double().mean()) < 0.9
        assert torch.equal(rule, seen.logits.argmax(-1) != session.policies.members["large"](batch).argmax(-1))
        assert float(((head.reading(seen) > threshold) == rule).double().mean()) > 0.95
    untouched = AutoModelForCausalLM.from_pretrained(planted / "base").state_dict()
    assert all(
        torch.equal(untouched[name], value)
        for name, value in AutoModelForCausalLM.from_pretrained(output).state_dict().items()
    )


def test_the_validation_has_labels_of_its_own(planted: Path, tmp_path: Path) -> None:
    data = {"train": {"files": ["train.jsonl"], "limit": 9}, "validation": {"files": ["train.jsonl"], "limit": 12}}
    session = Session(routing(tmp_path / "out", data), root=planted)
    live = session.policies.teacher
    assert isinstance(live, LiveTeacher)
    session.store_teacher(tmp_path / "teacher")
    prepared = session.preparation
    assert prepared.validation is not None
    for policies, dataset in (
        (session.policies, prepared.datasets["train"]),
        (session.validating, prepared.validation),
    ):
        assert policies.teacher is not None
        for batch in whole_batches(dataset, prepared.pad_id, rows=5):
            assert torch.equal(policies.teacher(batch).ids, live(batch).ids)


@torch.no_grad()
def walked(model: Any, ids: list[int], token: int, steps: int, ends: set[int]) -> list[int]:
    """Greedy, by whole forwards."""
    text = [token]
    while text[-1] not in ends and len(text) <= steps:
        text.append(int(model(torch.tensor([[*ids, *text]])).logits[0, -1].argmax()))
    return text[:-1] if text[-1] in ends and len(text) > 1 else text


@pytest.mark.parametrize("packing", ["none", "fit"])
def test_tokens_diverge_whose_texts_do(planted: Path, tmp_path: Path, packing: str) -> None:
    data = {"train": {"files": ["train.jsonl"], "limit": 6}}
    changes = {"label": "divergent", "horizon": 5, "agreement": 0.3}
    chosen = routing(tmp_path / "out", data, **changes).model_copy(
        update={"batch": recipe(tmp_path, batch={"rows": 2, "packing": packing, "max_length": 64}).batch}
    )
    session = Session(chosen, root=planted)
    live = session.policies.teacher
    assert isinstance(live, LiveTeacher)
    assert isinstance(live.policy, Diverging)
    batch = session.data(0)["train"]
    model: Any = AutoModelForCausalLM.from_pretrained(planted / "large")
    own: Any = session.policies.trained
    mine, theirs = own.seen(batch).logits.argmax(-1).tolist(), session.policies.members["large"](batch).argmax(-1)
    found = cast("list[int]", live(batch).ids[:, 0].tolist())
    kept = moved = 0
    for n, (row, place) in enumerate(cast("list[list[int]]", batch.counted.nonzero().tolist())):
        document = batch.documents[row, place]
        ids = [int(t) for t, d in zip(batch.input_ids[row], batch.documents[row], strict=True) if d == document]
        ids = ids[: int(batch.positions[row, place]) + 1]
        other = int(theirs[n])
        one, two = (walked(model, ids, token, 5, {0}) for token in (mine[n], other))
        leads_elsewhere = mine[n] != other and longest(one, two) < 0.3 * max(len(one), len(two))
        assert found[n] == (other if leads_elsewhere else mine[n])
        kept, moved = kept + (not leads_elsewhere and mine[n] != other), moved + leads_elsewhere
    assert kept
    assert moved
    assert session.loss(0).total.isfinite()


def longest(one: list[int], other: list[int]) -> int:
    """A longest common subsequence, from its definition."""

    @cache
    def of(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        both = 1 + of(i + 1, j + 1) if one[i] == other[j] else 0
        return max(both, of(i + 1, j), of(i, j + 1))

    return of(0, 0)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [], 0), ([1, 2, 3], [1, 2, 3], 3), ([9, 1, 2, 3], [1, 2, 3, 4], 3), ([1, 2], [2, 1], 1), ([1], [2], 0)],
)
def test_common_subsequences(one: list[int], other: list[int], length: int) -> None:
    assert common_length(one, other) == longest(one, other) == length
