"""Memory of vLLM's engines: what the operator's file gives to all of them, the part of each, what fits into it, and who
waits for it."""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from motet.engines.vllm.internals import touch
from motet.models.facts import DTYPE_BYTES
from motet.models.info import ModelInfo
from motet.models.memory import GIB

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


@dataclass(frozen=True, slots=True)
class Capacity:
    """`tokens`: how many one engine's KV cache holds, each with the keys and values of all members
    (`bytes_per_token`). `rows`: requests that it computes at once. `engines`: data-parallel copies. A context takes
    whole blocks of `block` tokens, for `ahead` tokens of drafts too. vLLM keeps `kept_free` tokens from requests that
    wait: linked ones, of which some run and some wait, must do without them."""

    max_model_len: int
    tokens: int
    bytes_per_token: int
    rows: int
    engines: int = 1
    block: int = 1
    ahead: int = 0
    kept_free: int = 0

    def held(self, size: int) -> int:
        """Tokens that the blocks of a context of `size` tokens hold."""
        return -(-min(size + self.ahead, self.max_model_len) // self.block) * self.block

    def room(self, num_contexts: int) -> int:
        """Tokens that the contexts of one choice can hold together."""
        return self.tokens if num_contexts == 1 else self.tokens - self.kept_free


class Gate:
    """Room for linked requests: first come, first served, up to `tokens` of KV cache and `rows` of the batch.

    Together they must fit, else members could wait for each other's memory for ever. Other requests may take memory
    too, but they end by themselves; linked ones end only together.
    """

    def __init__(self, tokens: int, rows: int) -> None:
        self.tokens, self.rows = tokens, rows
        self._free = (tokens, rows)
        self._waiting: deque[tuple[tuple[int, int], asyncio.Future[None]]] = deque()

    def fits(self, tokens: int, rows: int) -> bool:
        """Whether so much can ever be had."""
        return tokens <= self.tokens and rows <= self.rows

    @asynccontextmanager
    async def room(self, tokens: int, rows: int) -> AsyncGenerator[None]:
        """Waits until there is room, and holds it."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((tokens, rows), entered))
        self._admit()
        try:
            await entered
            yield
        finally:
            self._leave((tokens, rows), entered)

    def _admit(self) -> None:
        while self._waiting:
            (tokens, rows), entered = self._waiting[0]
            if tokens > self._free[0] or rows > self._free[1]:
                return
            self._waiting.popleft()
            if not entered.done():
                self._free = (self._free[0] - tokens, self._free[1] - rows)
                entered.set_result(None)

    def _leave(self, held: tuple[int, int], entered: asyncio.Future[None]) -> None:
        if entered.done() and not entered.cancelled():
            self._free = (self._free[0] + held[0], self._free[1] + held[1])
        else:
            entered.cancel()
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not entered)
        self._admit()
