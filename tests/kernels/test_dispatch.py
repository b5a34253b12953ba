"""Which kernels run, and what happens without Triton."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from motet.kernels import dispatch
from motet.kernels.dispatch import VARIABLE, choose_kernels
from motet.kernels.eager import EagerKernels
from motet.kernels.layout import ComposeRows
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed
from motet.kernels.sampling import SampleRows
from motet.kernels.self_check import differs

CPU = torch.device("cpu")


def test_plain_torch_on_the_cpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.INFO):
        assert choose_kernels(CPU).name == "eager"
    assert "kernels: eager on cpu" in caplog.text


def test_the_environment_chooses_and_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv(VARIABLE, "triton")
    assert choose_kernels(CPU).name == "triton"
    assert choose_kernels(CPU, "eager").name == "eager"


def test_triton_on_cuda_where_it_proves_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv(VARIABLE, raising=False)
    found: list[str | None] = [None, "its greedy tokens are others"]

    def scripted(*_: object) -> str | None:
        return found.pop(0)

    monkeypatch.setattr(dispatch, "differs", scripted)
    assert choose_kernels(torch.device("cuda", 0)).name == "triton"
    assert choose_kernels(torch.device("cuda", 0)).name == "eager"
    assert "not used on cuda:0: its greedy tokens are others" in caplog.text


class WrongSum(EagerKernels):
    def compose(self, logits: Logits, plan: ComposeRows, rules: Any, state: Any) -> Composed:
        right = super().compose(logits, plan, rules, state)
        return Composed((right.logprobs * 1.01).log_softmax(-1), right.alpha)


class WrongMask(EagerKernels):
    def compose(self, logits: Logits, plan: ComposeRows, rules: Any, state: Any) -> Composed:
        right = super().compose(logits, plan, rules, state)
        return Composed(right.logprobs.clamp_min(-50.0), right.alpha)


class WrongDraw(EagerKernels):
    def sample(self, scores: torch.Tensor, params: SampleRows, uniform: Sequence[float]) -> torch.Tensor:
        return super().sample(scores, params, uniform) + 1


class Broken(EagerKernels):
    def compose(self, logits: Logits, plan: ComposeRows, rules: Any, state: Any) -> Composed:
        raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    ("kernels", "problem"),
    [
        (WrongSum(), "log-probs differ"),
        (WrongMask(), "mask keeps other tokens"),
        (WrongDraw(), "greedy tokens are others"),
        (Broken(), "RuntimeError: no such instruction"),
    ],
)
def test_the_self_check_sees(kernels: EagerKernels, problem: str) -> None:
    assert problem in (differs(kernels, CPU) or "")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # the interpreter's numpy on −inf − −inf
def test_the_self_check_passes_what_is_right() -> None:
    assert differs(EagerKernels(), CPU) is None
    pytest.importorskip("triton")
    assert differs(choose_kernels(CPU, "triton"), CPU) is None


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(ValueError, match=r"MOTET_KERNELS: unknown kernels 'tritn'.*did you mean 'triton'"):
        choose_kernels(CPU)


def test_everything_but_the_kernels_themselves_imports_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch, motet.kernels.dispatch, motet.engines.torch
assert motet.kernels.dispatch.choose_kernels(torch.device("cpu")).name == "eager"
try:
    motet.kernels.dispatch.choose_kernels(torch.device("cpu"), "triton")
except ImportError:
    sys.exit(0)
sys.exit("Triton was asked for, is not there, and nobody said so")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
