"""CPU only: faster modules in the place of norms and linears, each judged against the module that it replaces.

A replacement is tried on inputs that the original met while the load check recorded; one that gives other values is
left out with a warning, and the original stays.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from motet.server.engines.torch.norms import fused_norm, is_norm
from motet.server.engines.torch.packing import (
    SIBLINGS,
    PackedLinear,
    ProjectionPart,
    bias_of,
    can_pack,
    is_plain,
    joint_parts,
    same_linear,
)

log = logging.getLogger(__name__)


def replaceable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that may be replaced, by name."""
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return {name: module for name, module in modules if is_plain(module) or is_norm(module)}


def replace_modules(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Fuses norms and packs linears, in place.

    Args:
        inputs: rows (rows, width) that reached the replaceable modules, by name. A module without any stays.
    """
    dtype = next(model.parameters()).dtype
    for name, x in inputs.items():
        if is_norm(model.get_submodule(name)):
            _fuse(model, name, x)
    if not can_pack(dtype):
        return
    for parent in {name.rpartition(".")[0]: None for name in inputs}:
        for siblings in SIBLINGS:
            _join(model, [f"{parent}.{name}".lstrip(".") for name in siblings], inputs)
    for name, x in inputs.items():
        if is_plain(linear := model.get_submodule(name)):
            _put(model, [name], [linear], [PackedLinear(linear.weight, bias_of(linear))], x)


def part_name(path: str) -> str:
    """`model.layers.3.self_attn.q_norm` is called `layer 3: q_norm`."""
    layer = re.search(r"\.(\d+)\.", path)
    last = path.rpartition(".")[2]
    return f"layer {layer[1]}: {last}" if layer else last


def _fuse(model: nn.Module, name: str, x: Tensor) -> None:
    module = model.get_submodule(name)
    fused = fused_norm(module, x)
    if fused is None:
        _leave(name, f"{type(module).__name__} is no root-mean-square norm that torch has")
    else:
        model.set_submodule(name, fused)


def _join(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Joins siblings where all are plain linears that were given the same input."""
    if not all(name in inputs and torch.equal(inputs[name], inputs[names[0]]) for name in names):
        return
    linears = [linear for name in names if is_plain(linear := model.get_submodule(name))]
    parts = joint_parts(linears) if len(linears) == len(names) else None
    if parts is not None:
        _put(model, names, linears, parts, inputs[names[0]])


def _put(
    model: nn.Module,
    names: Sequence[str],
    linears: Sequence[nn.Linear],
    packed: Sequence[PackedLinear | ProjectionPart],
    x: Tensor,
) -> None:
    """Puts the packed modules in the linears' places, all or none: where each gives its linear's values for x."""
    found = [module(x) for module in packed]
    pairs = zip(names, linears, found, strict=True)
    wrong = [name for name, linear, values in pairs if not same_linear(values, linear.weight, bias_of(linear), x)]
    for name in wrong:
        _leave(name, "packed, it gives other values")
    for name, module in zip(names, packed, strict=True):
        if not wrong:
            model.set_submodule(name, module)


def _leave(name: str, why: str) -> None:
    log.warning("%s stays as transformers has it: %s", part_name(name), why)
