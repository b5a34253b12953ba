"""Several vLLM engines as one: each family of models has an engine of its own, and a request goes to its models'."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

from motet.composers.plan import Plan
from motet.engines.base import Engine, Generation, GenerationRequest, UnsupportedRequest
from motet.engines.outputs import EngineStats
from motet.engines.vllm.options import unsupported
from motet.models.info import ModelInfo


@dataclass(frozen=True, slots=True)
class Family:
    """Models that one engine holds; the first stands for the composite where vLLM asks for shapes.

    `vocabulary`: the fingerprint that they share. `memory`: the fraction of the file's memory that the operator gives
    them, None where none was given.
    """

    name: str
    models: tuple[str, ...]
    vocabulary: str
    dtype: str
    memory: float | None = None


def crossing(plan: Plan, families: Sequence[Family]) -> str | None:
    """Why the plan's models are in no one engine, None where they are."""
    homes = {model: family for family in families for model in family.models}
    first = plan.streams[0].model
    for stream in plan.streams[1:]:
        if homes[stream.model] is not homes[first]:
            reason = _apart(homes[first], homes[stream.model])
            return f"models {first!r} and {stream.model!r} are in two vLLM engines, and none composes both: {reason}"
    return None


def _apart(one: Family, other: Family) -> str:
    if one.vocabulary != other.vocabulary:
        return "their vocabularies differ"
    if one.dtype != other.dtype:
        return f"one is {one.dtype}, the other {other.dtype}; engine.dtype sets one for both"
    return f"engine.families puts them in {one.name!r} and {other.name!r}"


class Families:
    """See `base.Engine`. A family whose engine died answers no more; the others go on.

    Args:
        families: which models each engine holds.
        engines: by the family's name.
    """

    def __init__(self, families: Sequence[Family], engines: Mapping[str, Engine]) -> None:
        self._families = tuple(families)
        self._engines = dict(engines)
        self._homes = {model: engines[family.name] for family in families for model in family.models}
        self._infos = {model: engine.models[model] for model, engine in self._homes.items()}

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._infos

    @property
    def is_alive(self) -> bool:
        """Whether every engine is: a model that stays unanswered needs a restart as much as all of them do."""
        return all(engine.is_alive for engine in self._engines.values())

    def supports(self, plan: Plan) -> str | None:
        return unsupported(plan, self._infos) or crossing(plan, self._families) or self._home(plan).supports(plan)

    def _home(self, plan: Plan) -> Engine:
        return self._homes[plan.streams[0].model]

    def check(self, request: GenerationRequest) -> int:
        return self._home(request.plan).check(request)

    def generate(self, request: GenerationRequest) -> Generation:
        """Raises UnsupportedRequest: no engine holds all of the plan's models; one that was asked for another would
        end."""
        reason = self.supports(request.plan)
        if reason is not None:
            raise UnsupportedRequest(reason)
        return self._home(request.plan).generate(request)

    def stats(self) -> EngineStats:
        return _sum([engine.stats() for engine in self._engines.values()])

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))


def _sum(stats: Sequence[EngineStats]) -> EngineStats:
    """Counts add up; the seconds of each model are those of its engine."""
    lists = ("forward_seconds", "accepted_at")
    counts: dict[str, Any] = {
        field.name: sum(getattr(one, field.name) for one in stats)
        for field in fields(EngineStats)
        if field.name not in lists
    }
    accepted = tuple(map(sum, zip_longest(*(one.accepted_at for one in stats), fillvalue=0)))
    seconds = {model: value for one in stats for model, value in one.forward_seconds.items()}
    return EngineStats(**counts, forward_seconds=seconds, accepted_at=accepted)
