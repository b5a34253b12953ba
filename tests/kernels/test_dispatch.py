"""Which kernels run, and what happens without Triton."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from motet.kernels.dispatch import VARIABLE, choose_kernels

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


def test_triton_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_kernels(torch.device("cuda", 0)).name == "triton"


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(ValueError, match=r"MOTET_KERNELS: unknown kernels 'tritn'.*did you mean 'triton'"):
        choose_kernels(CPU)


def test_everything_but_the_kernels_themselves_imports_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch, motet.kernels.dispatch, motet.server.engines.torch
assert motet.kernels.dispatch.choose_kernels(torch.device("cpu")).name == "eager"
try:
    motet.kernels.dispatch.choose_kernels(torch.device("cpu"), "triton")
except ImportError:
    sys.exit(0)
sys.exit("Triton was asked for, is not there, and nobody said so")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
