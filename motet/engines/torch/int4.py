"""Products with 4-bit weights and activations read in 8 bits, on processors with AVX-512 VNNI.

The kernel is `int4.cpp`. The machine's C++ compiler builds it when it is first needed, in some seconds, against the
OpenMP library that torch runs on (a second one would have threads of its own, and the two would wait for each other on
one core); the result is kept. Where there is no such processor or no compiler, there is no kernel, and torch's own is
used, which computes every row for itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from motet.cache import default_cache
from motet.kernels.dispatch import VARIABLE

log = logging.getLogger(__name__)

GROUP, OUTPUTS = 32, 16  # inputs that share a scale; outputs of a block
MIDDLE = 8  # the code whose value is the group's zero
STEPS = 127  # of an activation's largest code
SOURCE = Path(__file__).with_suffix(".cpp")
NEEDS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"})
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")
TIMEOUT_S = 300  # of the compiler, which takes three
_HEADER = 4 * OUTPUTS
_GROUP_BYTES = _HEADER + GROUP * OUTPUTS // 2


class Int4Kernel:
    """`int4.cpp`, compiled."""

    def __init__(self, library: Path) -> None:
        functions, pointer, number = ctypes.CDLL(str(library)), ctypes.c_void_p, ctypes.c_int
        self._multiply, self._fit = functions.motet_int4_multiply, functions.motet_int4_fit
        self._multiply.argtypes = [pointer, pointer, pointer, number, number, number, pointer, pointer, number]
        self._fit.argtypes = [pointer, ctypes.c_int64, number, pointer, pointer, pointer, number]
        self._multiply.restype = self._fit.restype = None

    def multiply(self, x: Tensor, packed: Tensor) -> Tensor:
        """x Wᵀ (rows, outputs) of x (rows, inputs), bfloat16, and a packed weight."""
        x = x.contiguous()
        (rows, inputs), outputs = x.shape, packed.shape[0] * OUTPUTS
        y = x.new_empty(rows, outputs)
        codes = x.new_empty(rows, inputs, dtype=torch.int8)
        numbers = x.new_empty(3, rows, inputs // GROUP, dtype=torch.float32)
        pointers = (x.data_ptr(), packed.data_ptr(), y.data_ptr())
        room = (codes.data_ptr(), numbers.data_ptr())
        self._multiply(*pointers, rows, inputs, outputs, *room, torch.get_num_threads())
        return y

    def fit(self, weight: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (outputs, inputs) uint8, scale and zero (outputs, groups) of a weight (outputs, inputs), bfloat16.

        Levels and codes are fitted to each other, `rounds` times."""
        weight = weight.contiguous()
        codes = torch.empty_like(weight, dtype=torch.uint8)
        scale, zero = weight.new_empty(2, len(weight), weight.shape[1] // GROUP)
        pointers = (codes.data_ptr(), scale.data_ptr(), zero.data_ptr())
        self._fit(weight.data_ptr(), scale.numel(), rounds, *pointers, torch.get_num_threads())
        return codes, scale, zero


def pack(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A weight as the kernel reads it: (outputs / 16, groups, 320) bytes.

    Args:
        codes: (outputs, inputs) uint8, 0 … 15.
        scale, zero: (outputs, groups) bfloat16.
    """
    blocks, groups = codes.shape[0] // OUTPUTS, codes.shape[1] // GROUP
    halves = codes.view(blocks, OUTPUTS, groups, 4, 2, 4)
    both = (halves[..., 0, :] | (halves[..., 1, :] << 4)).permute(0, 2, 3, 1, 4)
    pairs = torch.stack([scale, zero], -1).view(blocks, OUTPUTS, groups, 2).transpose(1, 2).contiguous()
    header = pairs.view(torch.uint8).view(blocks, groups, _HEADER)
    return torch.cat([header, both.reshape(blocks, groups, _GROUP_BYTES - _HEADER)], -1)


def unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (outputs, inputs) of blocks of a packed weight."""
    blocks, groups, _ = packed.shape
    pairs = packed[..., :_HEADER].contiguous().view(torch.bfloat16).view(blocks, groups, OUTPUTS, 2).to(dtype)
    both = packed[..., _HEADER:].view(blocks, groups, 4, OUTPUTS, 4)
    codes = torch.stack([both & 15, both >> 4], 4).permute(0, 1, 3, 2, 4, 5).reshape(blocks, groups, OUTPUTS, GROUP)
    values = torch.addcmul(pairs[..., 1:], codes.to(dtype).sub_(MIDDLE), pairs[..., :1])
    return values.transpose(1, 2).reshape(blocks * OUTPUTS, groups * GROUP)


def as_read(x: Tensor) -> Tensor:
    """What the kernel takes activations (rows, inputs) for: float32, for each group of 32 a whole number of steps."""
    groups = x.float().view(len(x), -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    per_step = torch.where(largest > 0, torch.full_like(largest, STEPS) / largest, 0.0)  # 127 / x multiplies with 1 / x
    return ((groups * per_step).round() * (largest / STEPS)).view(x.shape)


@cache
def int4_kernel() -> Int4Kernel | None:
    """The kernel, built where it was not yet; None where there can be none, the reason in the log."""
    if os.environ.get(VARIABLE) == "eager" or not processor_flags() >= NEEDS:
        return None
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("4-bit weights are multiplied by torch's kernel, which is slower for several rows: %s", output)
        return None


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names; nothing where Linux does not say."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _load() -> Int4Kernel:
    """Raises OSError where there is no compiler or no OpenMP library to build against, or the result cannot be loaded,
    SubprocessError where the compiler refuses."""
    compiler, openmp = _compiler(), _openmp()
    wanted = "\0".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, compiler, str(openmp)])
    kept = default_cache() / "kernels" / f"int4-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}.so"
    if kept.is_file():
        return Int4Kernel(kept)
    log.info("compiling the kernel for 4-bit weights with %s", compiler)
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = Path(folder, "int4.o"), Path(folder, "int4.so")
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), str(openmp), "-o", str(library)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        return Int4Kernel(_keep(library, kept))


def _keep(library: Path, kept: Path) -> Path:
    """Where the library lies now: on a file system that is read only it is built by every process."""
    aside = kept.with_name(f".{kept.name}-{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, aside)
        aside.replace(kept)
    except OSError as error:
        log.info("%s is not kept: %s", kept, error.strerror)
        return library
    return kept


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise FileNotFoundError("there is no C++ compiler (g++)")


def _openmp() -> Path:
    """The OpenMP library that torch has loaded."""
    found = re.search(r"\S*/lib(?:gomp|iomp5)\S*\.so\S*", Path("/proc/self/maps").read_text(encoding="utf-8"))
    if found is None:
        raise FileNotFoundError("torch runs without an OpenMP library")
    return Path(found[0])
