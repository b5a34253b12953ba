"""How much memory vLLM's engines take: what the operator's file gives to all of them, and the part of each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motet.engines.base import ModelInfo
from motet.engines.facts import DTYPE_BYTES
from motet.engines.vllm.internals import touch

GIB = 1 << 30
CPU_SPACE = "VLLM_CPU_KVCACHE_SPACE"
BLOCK = 128  # tokens: vLLM's default on CPUs, its largest


@dataclass(frozen=True, slots=True)
class KvCache:
    """The KV caches of all engines, in bytes on each device; weights come on top."""

    total: int

    def cost(self, info: ModelInfo) -> int:
        """What engines divide it by: every cache then holds equally many tokens."""
        return info.kv_bytes_per_token

    def part(self, share: float) -> dict[str, Any]:
        """vLLM's option for the engine that gets this fraction."""
        return {"kv_cache_memory_bytes": int(self.total * share)}

    def held(self, share: float, cost: int, engine_args: Mapping[str, Any]) -> int:
        """The longest context that the engine of this fraction can hold; `cost`: bytes of a token over all devices."""
        space = float(os.environ.get(CPU_SPACE) or 0) * GIB if overriding_environment() else self.total * share
        devices = [int(engine_args.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "pipeline")]
        block = int(engine_args.get("block_size") or BLOCK)
        blocks = int(space * math.prod(devices)) // (cost * block)
        return (blocks - 1) * block  # vLLM keeps one for itself


@dataclass(frozen=True, slots=True)
class Utilization:
    """The fraction of each device that all engines take, weights and KV caches together."""

    total: float

    def cost(self, info: ModelInfo) -> int:
        """What engines divide it by: their weights, which must fit in first."""
        return info.num_parameters * DTYPE_BYTES[info.dtype]

    def part(self, share: float) -> dict[str, Any]:
        """vLLM's option for the engine that gets this fraction."""
        return {"gpu_memory_utilization": self.total * share}


def memory_of(engine_args: Mapping[str, Any], kv_cache_gib: float, *, given: bool) -> KvCache | Utilization:
    """What the operator's file says, else what vLLM takes on a GPU and the default of `kv_cache_gib` on a CPU.

    Args:
        given: whether the operator said `kv_cache_gib`.

    Raises:
        ValueError: the operator said both.
    """
    utilization = engine_args.get("gpu_memory_utilization")
    if utilization is not None and given:
        raise ValueError("engine.kv_cache_gib sizes the KV cache already; set one of them")
    if given or (utilization is None and touch("current_platform").is_cpu()):
        return KvCache(int(kv_cache_gib * GIB))
    return Utilization(utilization or touch("AsyncEngineArgs").gpu_memory_utilization)


def overriding_environment() -> str | None:
    """The variable by which vLLM on a CPU gives every engine the same cache, whatever the file says."""
    return CPU_SPACE if touch("current_platform").is_cpu() and os.environ.get(CPU_SPACE) else None
