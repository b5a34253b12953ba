"""What a step of the embedded engine touches: schedule, run, settle.

One cycle: admit what fits (`scheduler`), run every distinct model once and draw (`step`), free what has ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from motet.composers.plan import Plan
from motet.engines.base import EngineError, GenerationRequest, ModelLeft
from motet.engines.outputs import EngineStats
from motet.engines.torch.adapters import Adapter
from motet.engines.torch.choice import Choice, ChoiceGroup, choices_of
from motet.engines.torch.scheduler import EngineSettings, Scheduler
from motet.engines.torch.soft_prompts import Model, SoftPrompt, members_of
from motet.engines.torch.speculation import Speculator
from motet.engines.torch.step import Step, StepRunner


class EngineCore:
    """Schedule, run, settle: everything that a step touches. Not thread-safe: one thread calls `add`, `drop`, `step`.

    Args:
        models: loaded models, adapters of some and soft prompts in front of some, by registry name.
        settings: memory and chunk sizes.
    """

    def __init__(self, models: Mapping[str, Model], settings: EngineSettings | None = None) -> None:
        self.models = dict(models)
        self.members = members_of(self.models)
        self.scheduler = Scheduler(self.models, settings or EngineSettings())
        self.num_steps = 0
        self.leaving: dict[str, float] = {}  # name → when it may go, by the monotonic clock
        self._runner = StepRunner()
        self._speculator = Speculator(
            self.members, self.scheduler.settings, self.scheduler.max_rows, self._runner.kernels
        )

    def use(self, models: Mapping[str, Model]) -> None:
        """Other models from now on; other threads may go on reading the old mapping, which does not change."""
        self.models = dict(models)
        self.members = members_of(self.models)
        self.scheduler.use(self.models)
        self._speculator.use(self.members)

    def let_go(self) -> None:
        """Models that are leaving go once nothing that runs or waits reads them."""
        now = time.monotonic()
        used = {stream.model for choice in self.scheduler.choices for stream in choice.plan.streams}
        due = {name for name, when in self.leaving.items() if when <= now}
        needed = used | (self.models.keys() - due)
        for name in list(needed):  # what computes it stays, and what stands behind that
            while name in self.models and (behind := self.models[name].info.backbone) is not None:
                needed.add(name := behind)
        gone = due - needed
        if gone:
            self.leaving = {name: when for name, when in self.leaving.items() if name not in gone}
            for name in gone:
                if isinstance(model := self.models.get(name), SoftPrompt | Adapter):
                    model.forget()
            self.use({name: model for name, model in self.models.items() if name not in gone})

    def absent(self, plan: Plan) -> str | None:
        """A model of the plan that is not loaded."""
        models = self.models  # one mapping: the engine's thread may put another in its place
        return next((stream.model for stream in plan.streams if stream.model not in models), None)

    def check_loaded(self, plan: Plan) -> None:
        """Raises ModelLeft: a model of the plan has gone since the request was prepared."""
        if (gone := self.absent(plan)) is not None:
            raise ModelLeft(f"model {gone!r} was unloaded before the request began to run")

    def group(self, request: GenerationRequest) -> ChoiceGroup:
        """Raises ModelLeft, as `check_loaded` does."""
        self.check_loaded(request.plan)
        return choices_of(request, [self.models[stream.model] for stream in request.plan.streams])

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
    def step(self) -> Step | None:
        """Admits what fits, runs every distinct model once, frees what has ended; None if nothing was to do.

        The failures of a step end their whole request: their siblings are dropped here.
        """
        lost = self.scheduler.admit()
        if lost:
            reason = EngineError("there is no memory for the key / value cache that was configured")
            return self._settled(Step(failures=dict.fromkeys(lost, reason)))
        work = self.scheduler.schedule()
        if not work:
            return None
        self.num_steps += 1
        step = self._runner.run(self._speculator.draft(work, may_guess=not self.scheduler.is_measuring))
        if self._speculator.settle():
            self.scheduler.tempo.disregard()
        return self._settled(step)

    def _settled(self, step: Step) -> Step:
        self.drop([choice for choice, output in step.outputs if output.finish is not None])
        for choice in step.failures:
            for sibling in choice.group.choices:
                if not sibling.finished:
                    self.scheduler.remove(sibling, failed=True)
        return step

    def stats(self) -> EngineStats:
        drafts = self._speculator.stats
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
            preemptions=self.scheduler.num_preemptions,
            drafts=drafts.rounds,
            draft_tokens=drafts.guesses,
            accepted_tokens=drafts.accepted,
            accepted_at=tuple(drafts.accepted_at),
            forward_seconds={name: member.forward_seconds for name, member in self.members.items()},
        )
