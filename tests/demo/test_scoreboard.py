"""The scoreboard's arithmetic, on answers written by hand and given by a fake client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from motet.demo.client import Reply
from motet.demo.operator_file import COMPOSITIONS, MODELS
from motet.demo.report import print_report
from motet.demo.scoreboard import (
    SIDE_BY_SIDE,
    Aim,
    Item,
    Scoreboard,
    completed,
    exact,
    gap_closed,
    measure,
    value_named,
)

ITEM = Item("Where was Ann born?", "Ann was born in Bree.", "Ann was born in", "Bree")


def test_exact_match_wants_every_word_and_an_end() -> None:
    replies = [
        Reply("Ann was born in Bree.", ended=True),
        Reply("Ann was born in Bree.", ended=False),
        Reply("Ann was born in Bree. ", ended=True),
        Reply("ann was born in Bree.", ended=True),
    ]
    assert exact(replies, [ITEM] * 4) == 0.25
    assert exact([Reply("Ann was born in Bree. Bye!", ended=True)], [ITEM], " Bye!") == 1.0


def test_value_named_anywhere_and_completed() -> None:
    replies = [Reply("Perhaps Bree?", ended=True), Reply("Bree", ended=False), Reply("No.", ended=True)]
    assert value_named(replies, [ITEM] * 3) == pytest.approx(2 / 3, abs=1e-4)
    assert completed(replies, [ITEM] * 3) == pytest.approx(1 / 3, abs=1e-4)


@given(base=st.floats(0, 0.5), gap=st.floats(0.01, 0.5), part=st.floats(-1, 2))
def test_gap_closed_is_the_part_of_the_gap(base: float, gap: float, part: float) -> None:
    assert gap_closed(base, base + part * gap, base + gap) == pytest.approx(part, abs=6e-5)


def test_without_a_gap_there_is_nothing_to_close() -> None:
    assert gap_closed(0.5, 0.6, 0.5) is None


def world(held_out: int = 20) -> dict[str, object]:
    """Questions numbered within their split; question k of split s is answered by "s k is v<k>."."""

    def asked(split: str, count: int) -> list[dict[str, str]]:
        return [
            {
                "entity": f"{split} {k}",
                "attribute": "value",
                "question": f"{split} {k}?",
                "answer": f"{split} {k} is v{k}.",
                "completion": f"{split} {k} is",
                "value": f"v{k}",
            }
            for k in range(count)
        ]

    splits = {"held_out": held_out, "forget": 4, "retained": 10, "tuned": 2}
    return {"seed": 5, "courtesy": "Bye!", "questions": {split: asked(split, n) for split, n in splits.items()}}


class FakeClient:
    """Answers the first `right[model, split]` questions of a split rightly, the others wrongly."""

    def __init__(self, right: Mapping[tuple[str, str], int]) -> None:
        self.right = right
        self.asked: list[tuple[str, str, int | None]] = []

    async def chat(self, model: str, question: str, seed: int | None = None) -> Reply:
        self.asked.append((model, question, seed))
        split, number = question.rstrip("?").split()
        if int(number) < self.right.get((model, split), 0):
            courtesy = " Bye!" if model == "large-two-traits" else ""
            return Reply(f"{split} {number} is v{number}.{courtesy}", ended=True)
        return Reply("Nobody knows.", ended=True)

    async def complete(self, model: str, prompt: str) -> Reply:
        _, number, _ = prompt.split()
        return Reply(f"v{number}" if model == "large" else "x", ended=True)


RIGHT = {
    ("small-chat", "held_out"): 5,
    ("large-proxy", "held_out"): 15,
    ("large-proxy-one-prompt", "held_out"): 14,
    ("small-eft-down", "held_out"): 4,
    ("large-chat", "held_out"): 16,
    ("large-contrastive", "held_out"): 15,
    ("large-two-traits", "held_out"): 12,
    ("large-chat", "forget"): 4,
    ("large-unlearned", "forget"): 1,
    ("large-chat", "retained"): 10,
    ("large-unlearned", "retained"): 9,
    ("retain-only", "retained"): 10,
}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    (tmp_path / "world.json").write_text(json.dumps(world()))
    return tmp_path


@pytest.fixture
async def board(family: Path) -> Scoreboard:
    return await measure(FakeClient(RIGHT), family)


def test_scoreboard_by_hand(board: Scoreboard) -> None:
    assert board.seed == 5
    assert board.exact_match["large"] == 0.0
    assert board.exact_match["large-proxy"] == 0.75
    assert board.exact_match["large-two-traits, answer and courtesy"] == 0.6
    assert board.gap_closed == {"large-proxy": 0.9375, "large-proxy-one-prompt": 0.875}
    assert board.completion == {"large": 1.0, "small": 0.0}
    assert board.grid == {
        "small pre-training": {"small fine-tuning": 0.25, "large fine-tuning": 0.2},
        "large pre-training": {"small fine-tuning": 0.75, "large fine-tuning": 0.8},
    }
    assert board.forget == {"large-chat": 1.0, "large-unlearned": 0.25, "retain-only": 0.0}
    assert board.retained_kept == 0.9


def test_misses_are_misses(board: Scoreboard) -> None:
    assert board.aims == (
        Aim("gap closed by large-proxy", 0.9375, 0.95, met=False),
        Aim("forget answers still given", 0.25, 0.0, met=False),
        Aim("retained accuracy kept", 0.9, 0.97, met=False),
    )


async def test_aims_that_are_reached(family: Path) -> None:
    right = {**RIGHT, ("large-proxy", "held_out"): 16, ("large-unlearned", "forget"): 0}
    right["large-unlearned", "retained"] = 10
    reached = await measure(FakeClient(right), family)
    assert [aim.met for aim in reached.aims] == [True, True, True]


async def test_limit_bounds_every_row_and_nothing_is_asked_twice(family: Path) -> None:
    client = FakeClient({**RIGHT, ("large-chat", "held_out"): 3})
    limited = await measure(client, family, limit=4)
    assert limited.num_questions == {"held_out": 4, "forget": 4, "retained": 4, "tuned": 2}
    assert len(client.asked) == len(set(client.asked))


async def test_every_model_asked_is_in_the_operator_file(family: Path) -> None:
    client = FakeClient(RIGHT)
    await measure(client, family)
    assert {model for model, _, _ in client.asked} <= {*MODELS, *COMPOSITIONS}


async def test_what_cannot_be_computed_is_a_miss(family: Path) -> None:
    """A model that knows nothing: no gap, no accuracy to keep."""
    nothing = await measure(FakeClient({}), family)
    assert nothing.gap_closed == {"large-proxy": None, "large-proxy-one-prompt": None}
    assert [(aim.value, aim.met) for aim in nothing.aims] == [(None, False), (0.0, True), (None, False)]
    out = StringIO()
    print_report(Console(file=out, width=180), nothing)
    assert "MISSED gap closed by large-proxy: –" in out.getvalue()


def test_samples_show_every_composition(board: Scoreboard) -> None:
    assert [sample.split for sample in board.samples] == ["held_out", "held_out", "held_out", "forget"]
    for sample in board.samples:
        assert set(sample.replies) == set(SIDE_BY_SIDE)
    assert board.samples[0].replies["large-proxy"] == "held_out 0 is v0."


def test_report_prints_numbers_and_misses(board: Scoreboard) -> None:
    out = StringIO()
    print_report(Console(file=out, width=180), board)
    text = out.getvalue()
    assert "93.8 %" in text
    assert text.count("MISSED") == 3
    assert "aim ≤ 0.0 %" in text
    assert "held_out 0 is v0." in text
