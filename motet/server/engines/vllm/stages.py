"""Pipeline stages of the composite: every member is cut by vLLM itself, and what they hand over travels together.

vLLM gives each member's layers to the stages as if it were alone. Between two stages a model hands over a dictionary of
tensors; the composite's holds those of all members, each under its member's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from motet.server.engines.vllm.internals import touch


def joined(parts: Iterable[tuple[str, Any]]) -> Any:
    """The members' intermediate tensors as one; no name of a member holds a dot."""
    return touch("IntermediateTensors")(
        {f"{member}.{name}": tensor for member, part in parts for name, tensor in part.tensors.items()}
    )


def cut(tensors: Any, members: Iterable[str]) -> dict[str, Any]:
    """The inverse of `joined`; None for each member on the first stage, where `tensors` is None."""
    if tensors is None:
        return dict.fromkeys(members)
    own: dict[str, dict[str, Any]] = {member: {} for member in members}
    for name, tensor in tensors.tensors.items():
        member, _, inner = name.partition(".")
        own[member][inner] = tensor
    return {member: touch("IntermediateTensors")(part) for member, part in own.items()}


def prepare(runner: Any) -> None:
    """Gives a runner the buffer in which a later stage receives tensors, where vLLM did not.

    vLLM allocates it in its warm-up, which its CPU worker leaves out in eager mode: the first request then fails.
    """
    if runner.intermediate_tensors is None and not touch("get_pp_group")().is_first_rank:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )
