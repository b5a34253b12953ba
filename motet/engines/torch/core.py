"""The synchronous engine: schedule, run, collect. `engine` puts a thread and an event loop around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from motet.engines.base import EngineError, EngineStats, GenerationRequest
from motet.engines.torch.choice import Choice, ChoiceGroup, choices_of
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings, Scheduler
from motet.engines.torch.step import StepResult, StepRunner


class EngineCore:
    """Everything that a step touches. Not thread-safe: one thread calls `add`, `drop` and `step`."""

    def __init__(self, members: Mapping[str, Member], settings: EngineSettings | None = None) -> None:
        self.members = dict(members)
        self.scheduler = Scheduler(self.members, settings or EngineSettings())
        self.num_steps = 0
        self._runner = StepRunner()

    def group(self, request: GenerationRequest) -> ChoiceGroup:
        return choices_of(request, [self.members[stream.model] for stream in request.plan.streams])

    def add(self, group: ChoiceGroup) -> None:
        for choice in group.choices:
            self.scheduler.add(choice)

    @torch.inference_mode()
    def drop(self, choices: Sequence[Choice]) -> None:
        """Frees the choices' slots; those that have finished already stay so."""
        for choice in choices:
            if not choice.finished:
                self.scheduler.remove(choice)

    @torch.inference_mode()
    def step(self) -> StepResult | None:
        """Admits what fits, runs every distinct model once, frees what has ended; None if nothing was to do.

        The failures of a result end their whole request: their siblings are dropped here.
        """
        lost = self.scheduler.admit()
        if lost:
            reason = EngineError("there is no memory for the key / value cache that was configured")
            return self._settled(StepResult([], [(choice, reason) for choice in lost]))
        work = self.scheduler.plan()
        if not work:
            return None
        self.num_steps += 1
        return self._settled(self._runner.run(work))

    def _settled(self, result: StepResult) -> StepResult:
        self.drop([choice for choice, output in result.outputs if output.finish is not None])
        for choice, _ in result.failed:
            for sibling in choice.group.choices:
                if not sibling.finished:
                    self.scheduler.remove(sibling, failed=True)
        return result

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_bytes_used=sum(
                slot.reserved * member.cache.bytes_per_token
                for member in self.members.values()
                for slot in member.cache.active
            ),
            kv_bytes_budget=self.scheduler.settings.kv_cache_bytes,
            prefix_queries=self.scheduler.prefix_queries,
            prefix_hits=self.scheduler.prefix_hits,
            steps=self.num_steps,
            forward_seconds={name: member.forward_seconds for name, member in self.members.items()},
        )
