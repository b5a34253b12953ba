"""What is built by the machine's compiler: kept, and done without where it cannot be built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.engines.torch import native as module
from motet.engines.torch.native import AVX512, native, processor_flags
from motet.engines.torch.norms import FusedRMSNorm

SOURCE = Path(module.__file__).with_name("norms.cpp")
needs_compiler = pytest.mark.skipif(native(SOURCE, AVX512) is None, reason="no AVX-512, or no C++ compiler")


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The functions are looked for anew, within the test and behind it."""
    native.cache_clear()
    yield monkeypatch
    native.cache_clear()


@needs_compiler
def test_it_is_kept(cleared: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cleared.setenv("MOTET_CACHE", str(tmp_path))
    assert native(SOURCE, AVX512) is not None
    (library,) = (tmp_path / "native").iterdir()
    native.cache_clear()
    cleared.setattr(subprocess, "run", None)  # nothing is built twice
    assert native(SOURCE, AVX512) is not None
    assert [library] == list((tmp_path / "native").iterdir())


@needs_compiler
def test_without_a_place_to_keep_it(cleared: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cleared.setenv("MOTET_CACHE", str(tmp_path / "file"))
    assert native(SOURCE, AVX512) is not None


@pytest.mark.parametrize("way", ["eager", "old processor", "no compiler", "broken compiler"])
def test_where_there_can_be_none(
    way: str, cleared: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cleared.setenv("MOTET_CACHE", str(tmp_path))
    if way == "eager":
        cleared.setenv("MOTET_KERNELS", "eager")
    elif way == "old processor":
        cleared.setattr(module, "processor_flags", lambda: frozenset({"avx2", "fma"}))
    else:
        cleared.setattr(module, "processor_flags", lambda: AVX512)
        cleared.setenv("PATH", str(tmp_path))
        cleared.delenv("CXX", raising=False)
        if way == "broken compiler":
            broken = tmp_path / "g++"
            broken.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('unknown option')\n", encoding="utf-8")
            broken.chmod(0o755)
    assert native(SOURCE, AVX512) is None
    reason = {"no compiler": "there is no C++ compiler", "broken compiler": "unknown option"}.get(way)
    assert reason is None or reason in caplog.text


def test_the_processor_says_what_it_can() -> None:
    assert all(flag and not flag.isspace() for flag in processor_flags())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_compiler
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (3, 17), (2, 3, 96), (1, 1536), (300, 128), (0, 64)])
def test_a_norm_is_rounded_once(shape: tuple[int, ...], wide: bool) -> None:
    """Against float64: to half a unit of bfloat16, and what float32 adds."""
    x = (numbers(*shape) * 30).bfloat16()
    weight = (numbers(shape[-1], seed=1) * 100).to(torch.float32 if wide else torch.bfloat16)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    found = FusedRMSNorm(weight, 1e-5)(x)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= (2**-8 + 2**-20) * exact.abs()).all()


@needs_compiler
def test_norms_of_rows_apart_and_of_broken_ones() -> None:
    norm, x = FusedRMSNorm(torch.ones(40).bfloat16(), 1e-6), numbers(40, 5).bfloat16()
    assert torch.equal(norm(x.t()), norm(x.t().contiguous()))
    x = numbers(3, 40).bfloat16()
    whole = norm(x)
    x[1, 7] = float("nan")
    found = norm(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], whole[[0, 2]])


@needs_compiler
def test_a_norm_that_is_trained_has_its_gradient() -> None:
    x = numbers(2, 32).bfloat16().requires_grad_()
    FusedRMSNorm(torch.ones(32).bfloat16(), 1e-6)(x).float().square().sum().backward()
    assert x.grad is not None
