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

from motet.engines.torch.norms import fused_norm, is_norm
from motet.engines.torch.packing import (
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
    replacer = _Replacer(model, inputs)
    replacer.fuse_norms()
    if can_pack(next(model.parameters()).dtype):
        replacer.join_siblings()
        replacer.pack_linears()
    for reason, parts in replacer.left_out.items():
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        log.warning("%s%s: left as transformers has it, which is slower: %s", parts[0], more, reason)


def part_name(path: str) -> str:
    """`model.layers.3.self_attn.q_norm` is called `layer 3: q_norm`."""
    layer = re.search(r"\.(\d+)\.", path)
    last = path.rpartition(".")[2]
    return f"layer {layer[1]}: {last}" if layer else last


class _Replacer:
    """Attributes:
    left_out: reasons, with the parts that they hold for.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.model = model
        self.inputs = inputs
        self.left_out: dict[str, list[str]] = {}

    def fuse_norms(self) -> None:
        for name, x in self.inputs.items():
            if not is_norm(module := self.model.get_submodule(name)):
                continue
            if (fused := fused_norm(module, x)) is not None:
                self.model.set_submodule(name, fused)
            else:
                self._leave(name, f"{type(module).__name__} is not torch's root-mean-square norm")

    def join_siblings(self) -> None:
        for parent in dict.fromkeys(name.rpartition(".")[0] for name in self.inputs):
            for siblings in SIBLINGS:
                self._join([f"{parent}.{name}" if parent else name for name in siblings])

    def pack_linears(self) -> None:
        for name in self.inputs:
            if is_plain(linear := self.model.get_submodule(name)):
                self._put([name], [linear], [PackedLinear(linear.weight, bias_of(linear))])

    def _join(self, names: Sequence[str]) -> None:
        """Joins siblings where all are plain linears that were given the same input."""
        rows = [self.inputs.get(name) for name in names]
        if rows[0] is None or not all(other is not None and torch.equal(rows[0], other) for other in rows):
            return
        linears = [linear for name in names if is_plain(linear := self.model.get_submodule(name))]
        parts = joint_parts(linears) if len(linears) == len(names) else None
        if parts is not None:
            self._put(names, linears, parts)

    def _put(
        self, names: Sequence[str], linears: Sequence[nn.Linear], packed: Sequence[PackedLinear | ProjectionPart]
    ) -> None:
        """Puts the packed modules in the linears' places, all or none: where each gives its linear's values."""
        x = self.inputs[names[0]]
        found = zip(names, linears, [module(x) for module in packed], strict=True)
        wrong = [name for name, linear, y in found if not same_linear(y, linear.weight, bias_of(linear), x)]
        for name in wrong:
            self._leave(name, "packed, it gives other values")
        for name, module in zip(names, packed, strict=True):
            if not wrong:
                self.model.set_submodule(name, module)

    def _leave(self, name: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(part_name(name))
