"""Whether the models of an operator's file fit into the memory of their devices, before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.models import memory, prequantised
from motet.models.checkpoint import local, read_config
from motet.models.info import ModelInfo
from motet.models.memory import GIB, gib
from motet.operator.backbones import low_ranks
from motet.operator.settings import EngineConfig
from motet.operator.sources import Source

SMALLEST_CONTEXT = 64  # tokens: what an arena of the embedded engine takes for the shortest request


def memory_problems(engine: EngineConfig, sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[str]:
    """What cannot fit: weights and the shortest request into each device's memory, that request into the KV budget.

    The budget itself is taken as requests need it: where it might not fit, `memory_warnings` says so.
    """
    budget = int(engine.kv_cache_gib * GIB)
    largest = max(infos.values(), key=lambda info: info.kv_bytes_per_token)
    least = SMALLEST_CONTEXT * largest.kv_bytes_per_token
    if budget < least:
        return [
            f"engine.kv_cache_gib: {engine.kv_cache_gib:g} GiB hold no request: {largest.name!r} needs "
            f"{largest.kv_bytes_per_token:,} bytes for each of {SMALLEST_CONTEXT} tokens, {least / GIB:.3g} GiB."
        ]
    return [
        f"engine: the models do not fit into {demand.sentence(budget)}."
        for demand in _demands(sources, infos)
        if demand.weights + least > demand.free or budget > demand.free
    ]


def memory_warnings(engine: EngineConfig, sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[str]:
    """What would not fit if requests took the whole KV budget."""
    budget = int(engine.kv_cache_gib * GIB)
    return [
        f"engine: under load the models may not fit into {demand.sentence(budget)}. Nearest: a smaller kv_cache_gib."
        for demand in _demands(sources, infos)
        if demand.weights + budget > demand.free
    ]


@dataclass(frozen=True, slots=True)
class _Demand:
    """What the models of one device take, and what it has free, in bytes."""

    device: str
    sizes: Mapping[str, int]
    free: int

    @property
    def weights(self) -> int:
        return sum(self.sizes.values())

    def sentence(self, budget: int) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.sizes.items())
        return (
            f"the {gib(self.free)} that {self.device} has free: {parts} of weights and {gib(budget)} of keys and "
            f"values (kv_cache_gib) are {gib(self.weights + budget)}"
        )


def _demands(sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[_Demand]:
    sizes = {name: weight_bytes(sources[name], info) for name, info in infos.items()}
    return [
        _Demand(
            device,
            {name: size for name, size in sizes.items() if infos[name].device == device},
            memory.available_bytes(device),
        )
        for device in dict.fromkeys(info.device for info in infos.values())
    ]


def weight_bytes(source: Source, info: ModelInfo) -> int:
    """Bytes of a model's weights once they are loaded."""
    from motet.engines.torch.quantization import draft_bytes
    from motet.engines.torch.quantization import weight_bytes as quantized_bytes
    from motet.models.facts import DTYPE_BYTES, shapes_of

    itemsize = DTYPE_BYTES.get(info.dtype, 4)
    if source.backbone is not None and not source.virtual_tokens:
        return sum(down.numel() + up.numel() for down, up in low_ranks(source).values()) * itemsize
    if source.backbone is not None:
        return source.virtual_tokens * int(_config(source).get_text_config().hidden_size) * itemsize
    if info.quantization is not None:
        return quantized_bytes(shapes_of(_config(source)), info.quantization, itemsize)
    if info.draft_quantization is not None:
        guessing = draft_bytes(shapes_of(_config(source)), info.draft_quantization, itemsize)
        return info.num_parameters * itemsize + guessing
    place = local(source.checkpoint, source.checkpoint_revision)
    if prequantised.method_of(_config(source)) is not None:
        return sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))
    return info.num_parameters * itemsize


def _config(source: Source) -> Any:
    return read_config(source.checkpoint, source.checkpoint_revision)
