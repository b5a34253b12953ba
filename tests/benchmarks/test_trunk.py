"""The way of a chat request through the package, by its calls."""

from __future__ import annotations

import pytest

from benchmarks.trunk import ROOT, figures, traced

# who reads these in this order knows the way; kernels/decode.py composes and draws
TRUNK = (
    "server/routes/chat.py",
    "server/respond.py",
    "server/prepare.py",
    "operator/registry.py",
    "engines/torch/engine.py",
    "engines/torch/scheduler.py",
    "engines/torch/step.py",
    "kernels/decode.py",
)

# what a plain request asks nothing of
ASIDE = (
    "composers/plan.py", "engines/drawn.py", "engines/torch/low_rank.py", "operator/access.py",
    "server/adapters/adapter.py", "server/answer_size.py", "server/continuations.py", "server/dialogue/answer_form.py",
    "server/dialogue/highlights.py", "server/dialogue/parts.py", "server/dialogue/reasoning.py",
    "server/dialogue/tools.py", "server/escalation.py", "server/gating.py", "server/guard.py",
    "server/http/unsupported.py", "server/pondering.py", "server/role_prompts.py", "server/speculation.py",
    "server/structured.py", "server/translation.py", "server/trials.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, str, str]]:
    return traced(ROOT)


def test_a_chat_request_takes_the_trunk_in_order(calls: list[tuple[str, str, str]]) -> None:
    files = figures(calls)["in_order"]
    assert [file for file in files if file in TRUNK] == list(TRUNK)


def test_a_plain_request_enters_nothing_that_it_does_not_ask_for(calls: list[tuple[str, str, str]]) -> None:
    assert all((ROOT / "motet" / file).exists() for file in ASIDE)
    assert [(file, function) for _, file, function in calls if file in ASIDE] == []


def test_a_request_is_checked_once(calls: list[tuple[str, str, str]]) -> None:
    """By `prepare`; `Engine.generate` relies on it."""
    checks = [function for _, file, function in calls if file.startswith("engines/") and function.endswith(".check")]
    assert sorted(checks) == ["Scheduler.check", "TorchEngine.check"]


def test_figures() -> None:
    calls = [("t", "a", "f"), ("t", "b", "g"), ("t", "a", "f"), ("t", "b", "h"), ("t", "b", "g"), ("t", "c", "k")]
    assert figures(calls) == {"files": 3, "functions": 4, "changes": 2, "running": 4, "in_order": ["a", "b", "c"]}
