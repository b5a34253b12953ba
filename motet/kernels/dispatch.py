"""Which kernels a process runs: chosen once per device, logged, overridable.

`MOTET_KERNELS` = `eager` (plain torch; nothing is compiled for members either), `triton` or `auto` (the default: Triton
on CUDA where it can be imported and proves itself, else plain torch); an argument wins over the environment. Triton on
the CPU needs its interpreter (TRITON_INTERPRET=1) and serves tests.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os

import torch

from motet.kernels.decode import Kernels
from motet.kernels.eager import EagerKernels
from motet.kernels.self_check import differs

log = logging.getLogger(__name__)
VARIABLE = "MOTET_KERNELS"
NAMES = ("auto", "eager", "triton")


def choose_kernels(device: torch.device, name: str | None = None) -> Kernels:
    """The kernels for members on `device`.

    Args:
        name: one of `NAMES`; None reads the environment.

    Raises:
        ValueError: an unknown name.
        ImportError: Triton is asked for and not installed.
    """
    wanted = name or os.environ.get(VARIABLE) or "auto"
    if wanted not in NAMES:
        near = difflib.get_close_matches(wanted, NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{VARIABLE}: unknown kernels {wanted!r}; allowed: {', '.join(NAMES)}{hint}")
    if wanted == "auto":
        return _best(device)
    log.info("kernels: %s on %s", wanted, device)
    return EagerKernels() if wanted == "eager" else _triton_kernels()


def _best(device: torch.device) -> Kernels:
    """Triton on CUDA where it proves itself on a small case, else plain torch: slower is better than wrong."""
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        kernels = _triton_kernels()
        problem = differs(kernels, device)
        if problem is None:
            log.info("kernels: %s on %s", kernels.name, device)
            return kernels
        log.warning("the Triton kernels are not used on %s: %s", device, problem)
    log.info("kernels: eager on %s", device)
    return EagerKernels()


def _triton_kernels() -> Kernels:
    """Imported here: Triton is optional, and reads its interpreter's switch when it is imported."""
    from motet.kernels.triton.backend import TritonKernels

    return TritonKernels()
