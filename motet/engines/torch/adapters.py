"""Adapters: low-rank changes of a model under names of their own, computed beside its weights.

Streams of a model and of its adapters are rows of the same forward of the same weights. The adapters' keys and values
lie among the model's; a slot remembers whose it is, so that a cached prefix is never mistaken for another's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from motet.engines.torch.low_rank import Adapted, LowRank
from motet.engines.torch.model import Member
from motet.engines.torch.packing import ProjectionPart
from motet.engines.torch.quantized import QuantizedLinear
from motet.models.ends import ends_within
from motet.models.info import ModelInfo

Weights = Mapping[str, tuple[Tensor, Tensor]]  # A (r, in) and B (out, r), times its scale, by the linear's name
SHOWN = 3
_unused = count(1)  # of all members; 0 is a member without adapter


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What the engine has under an adapter's name, in the place of a `Member`.

    Attributes:
        member: the model whose weights it shares, which other names may share.
        adapter: its number, which no other has or will have.
        info: of a model of this name.
    """

    member: Member
    adapter: int
    info: ModelInfo
    prefix: tuple[int, ...] = ()  # as a `SoftPrompt` has one

    @property
    def name(self) -> str:
        return self.info.name

    def forget(self) -> None:
        """Nothing reads it any more."""
        for module in self.member.model.modules():
            if isinstance(module, Adapted):
                module.added.pop(self.adapter, None)


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linears that an adapter may change, by name, however their weights are stored; the output head is none: its
    rows are not the tokens of a forward."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kinds = (nn.Linear, Conv1D, QuantizedLinear, ProjectionPart)
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return {name: module for name, module in modules if isinstance(module, kinds) and module is not head}


def width_of(linear: nn.Module) -> tuple[int, int]:
    """(in, out)."""
    names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    return int(getattr(linear, names[0])), int(getattr(linear, names[1]))


def attach_adapter(name: str, member: Member, weights: Weights, ends: Collection[int] = ()) -> Adapter:
    """An adapter beside a loaded model, which may serve others meanwhile.

    Args:
        ends: of an answer, beside the member's: those that its training data had.

    Raises:
        ValueError: linears that the member does not have, or that are not given every token of a forward once; other
            shapes than theirs, values that are not finite in the member's dtype.
    """
    foreign = [linear for linear in weights if linear not in member.linears]
    if foreign or not weights:
        raise ValueError(f"{member.name!r} has no linear of all tokens that is called {_listed(foreign)}")
    own: dict[str, LowRank] = {}
    for linear, (down, up) in weights.items():
        rank, width = len(down), member.linears[linear]
        if (down.shape, up.shape) != ((rank, width[0]), (width[1], rank)):
            shapes = f"{list(down.shape)} and {list(up.shape)}"
            raise ValueError(f"{linear}: {shapes} are no low rank of a linear {list(width)} of {member.name!r}")
        down, up = (tensor.to(member.device, member.dtype) for tensor in (down, up))
        if not bool(down.isfinite().all() & up.isfinite().all()):
            raise ValueError(f"{linear}: the adapter holds values that are not finite in {member.info.dtype}")
        own[linear] = LowRank(down, up)
    number = next(_unused)
    for linear, low_rank in own.items():
        _adapted(member, linear).added[number] = low_rank
    known = dict.fromkeys((*member.info.eos_token_ids, *ends_within(member.vocab_size, ends, ())))
    # a head was trained on what the model says without
    info = replace(member.info, name=name, eos_token_ids=tuple(known), head=None, clusters=(), backbone=member.name)
    return Adapter(member, number, info)


def _adapted(member: Member, linear: str) -> Adapted:
    """What stands in the linear's place, from now on; one assignment, so that a forward meets either of the two."""
    module = member.model.get_submodule(linear)
    if not isinstance(module, Adapted):
        module = Adapted(module)
        member.model.set_submodule(linear, module)
    return module


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:SHOWN]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
