"""Pipeline stages of the composite: every member is cut by vLLM itself, and what they hand over travels as one.

vLLM gives each member's layers to the stages as if it were alone. Between two stages a model hands over a dictionary of
tensors, n tokens long; the composite's are side by side in one tensor, since vLLM sends each on its own, and takes at
most 8 on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from motet.engines.vllm.internals import touch


class Part(NamedTuple):
    """A tensor that a member hands over: (n, *shape)."""

    member: str
    name: str
    shape: torch.Size
    dtype: torch.dtype


class Handover:
    """Joins what the members hand over, and cuts it again.

    Args:
        members: by name; all support pipeline stages.
        dtype: of the model.
    """

    def __init__(self, members: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        self._members = members
        self._dtype = dtype

    @cached_property
    def _parts(self) -> dict[str, list[Part]]:
        """By name of the joined tensor: one for each dtype."""
        parts: dict[str, list[Part]] = {}
        for member, module in self._members.items():
            make: Any = module.make_empty_intermediate_tensors
            for name, tensor in make(batch_size=1, dtype=self._dtype, device=torch.device("meta")).tensors.items():
                part = Part(member, name, tensor.shape[1:], tensor.dtype)
                parts.setdefault(str(part.dtype).removeprefix("torch."), []).append(part)
        return parts

    def empty(self, batch_size: int, device: torch.device) -> Any:
        """vLLM's IntermediateTensors of `batch_size` tokens, zeros."""
        return touch("IntermediateTensors")(
            {
                name: torch.zeros(batch_size, sum(_widths(parts)), dtype=parts[0].dtype, device=device)
                for name, parts in self._parts.items()
            }
        )

    def join(self, handed: Mapping[str, Any]) -> Any:
        """The members' IntermediateTensors as one."""
        return touch("IntermediateTensors")(
            {
                name: torch.cat([handed[part.member].tensors[part.name].flatten(1) for part in parts], -1)
                for name, parts in self._parts.items()
            }
        )

    def cut(self, joined: Any) -> dict[str, Any]:
        """The inverse of `join`; None for each member on the first stage, which is handed None."""
        if joined is None:
            return dict.fromkeys(self._members)
        own: dict[str, dict[str, Tensor]] = {member: {} for member in self._members}
        for name, parts in self._parts.items():
            for part, tensor in zip(parts, joined.tensors[name].split(_widths(parts), -1), strict=True):
                own[part.member][part.name] = tensor.contiguous().unflatten(-1, part.shape)
        return {member: touch("IntermediateTensors")(tensors) for member, tensors in own.items()}


def _widths(parts: list[Part]) -> list[int]:
    return [math.prod(part.shape) for part in parts]


def prepare(runner: Any) -> None:
    """Gives a runner the buffer in which a later stage receives tensors, where vLLM did not.

    vLLM allocates it in its warm-up, which its CPU worker leaves out in eager mode: the first request then fails.
    """
    if runner.intermediate_tensors is None and not touch("get_pp_group")().is_first_rank:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )
