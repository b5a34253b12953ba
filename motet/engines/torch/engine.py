"""The embedded engine: a thread that steps, and the asynchronous interface that the server talks to.

One cycle: take what has arrived, admit what fits (`scheduler`), run every distinct model once and draw (`step`), hand
out the tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress

import torch

from motet.composers.plan import Plan, RoutedRule
from motet.engines.base import EngineError, EngineStats, GenerationRequest, TokenOutput, refuse_empty
from motet.engines.torch.choice import Choice, ChoiceGroup, choices_of
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings, Scheduler
from motet.engines.torch.step import Step, StepRunner
from motet.models.info import ModelInfo

log = logging.getLogger(__name__)


class EngineCore:
    """Schedule, run, settle: everything that a step touches. Not thread-safe: one thread calls `add`, `drop`, `step`.

    Args:
        members: loaded models by registry name.
        settings: memory and chunk sizes.
    """

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
    def step(self) -> Step | None:
        """Admits what fits, runs every distinct model once, frees what has ended; None if nothing was to do.

        The failures of a step end their whole request: their siblings are dropped here.
        """
        lost = self.scheduler.admit()
        if lost:
            reason = EngineError("there is no memory for the key / value cache that was configured")
            return self._settled(Step(failures=dict.fromkeys(lost, reason)))
        work = self.scheduler.plan()
        if not work:
            return None
        self.num_steps += 1
        return self._settled(self._runner.run(work))

    def _settled(self, step: Step) -> Step:
        self.drop([choice for choice, output in step.outputs if output.finish is not None])
        for choice in step.failures:
            for sibling in choice.group.choices:
                if not sibling.finished:
                    self.scheduler.remove(sibling, failed=True)
        return step

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


class TorchGeneration:
    """A running request of the embedded engine (see `base.Generation`). Used from one event loop."""

    def __init__(self, engine: TorchEngine, group: ChoiceGroup, loop: asyncio.AbstractEventLoop) -> None:
        self.group = group
        self.loop = loop
        self._engine = engine
        self._ready: deque[TokenOutput] = deque()
        self._error: EngineError | None = None
        self._open = {choice.index for choice in group.choices}
        self._wake = asyncio.Event()

    @property
    def cached_tokens(self) -> int:
        return self.group.choices[0].cached_tokens

    @property
    def queued_seconds(self) -> float:
        return self.group.choices[0].queued_seconds

    def __aiter__(self) -> AsyncIterator[TokenOutput]:
        return self

    async def __anext__(self) -> TokenOutput:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        output = self._ready.popleft()
        if output.finish is not None:
            self._open.discard(output.choice)
        return output

    def stop_choice(self, choice: int) -> None:
        self._open.discard(choice)
        self._ready = deque(output for output in self._ready if output.choice != choice)
        self._engine.drop([self.group.choices[choice]])
        self._wake.set()

    async def aclose(self) -> None:
        self._open.clear()
        self._ready.clear()
        self._engine.drop(self.group.choices)
        self._wake.set()

    def deliver(self, outputs: Sequence[TokenOutput]) -> None:
        """Called in the event loop, once per step."""
        self._ready.extend(output for output in outputs if output.choice in self._open)
        self._wake.set()

    def fail(self, error: EngineError) -> None:
        """Called in the event loop: what was delivered is still read, then the error is raised."""
        if self._open:
            self._error = error
            self._wake.set()


class TorchEngine:
    """Composed generation over Hugging Face models on the CPU or one CUDA device.

    Args:
        members: loaded models by registry name.
        settings: memory and chunk sizes.
    """

    def __init__(self, members: Mapping[str, Member], settings: EngineSettings | None = None) -> None:
        self._core = EngineCore(members, settings)
        self._generations: dict[ChoiceGroup, TorchGeneration] = {}  # engine thread only
        self._arrivals: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._closing_lock = threading.Lock()  # nothing arrives between the last look at the arrivals and the end
        self._thread = threading.Thread(target=self._run, name="motet-engine", daemon=True)
        self._thread.start()

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return {name: member.info for name, member in self._core.members.items()}

    def supports(self, plan: Plan) -> str | None:
        if isinstance(plan.rule, RoutedRule):
            return "rule 'Routed' needs a learned gate, which no loaded model has"
        absent = next((stream.model for stream in plan.streams if stream.model not in self._core.members), None)
        return None if absent is None else f"model {absent!r} is not loaded"

    def check(self, request: GenerationRequest) -> int:
        refuse_empty(request)
        return self._core.scheduler.check(request)

    def generate(self, request: GenerationRequest) -> TorchGeneration:
        generation = TorchGeneration(self, self._core.group(request), asyncio.get_running_loop())
        self._post(lambda: self._start(generation))
        return generation

    def drop(self, choices: Sequence[Choice]) -> None:
        """Frees the choices before the next step."""
        with suppress(EngineError):  # an engine that has ended holds no slots
            self._post(lambda: self._drop(choices))

    def stats(self) -> EngineStats:
        return self._core.stats()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    async def close(self) -> None:
        with self._closing_lock:
            self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    # What follows runs in the engine's own thread.

    def _post(self, action: Callable[[], None]) -> None:
        with self._closing_lock:
            if self._closing:
                raise EngineError("the engine is closed")
            self._arrivals.append(action)
        self._wake.set()

    def _run(self) -> None:
        reason = "the engine was stopped"
        try:
            while not self._closing:
                self._cycle()
        except Exception as error:  # a defect of the engine itself: nobody may wait for it for ever
            log.exception("the engine died")
            reason = f"the engine died: {type(error).__name__}"
        self._end(EngineError(reason))

    def _end(self, error: EngineError) -> None:
        """Takes no more requests, then fails all that are left, also those that arrived last."""
        with self._closing_lock:
            self._closing = True
        for arrive in self._arrivals:
            with suppress(Exception):
                arrive()
        for generation in list(self._generations.values()):
            _notify(generation, generation.fail, error)
            with suppress(Exception):
                self._drop(generation.group.choices)

    def _cycle(self) -> None:
        """What has arrived, then one step; sleeps while there is neither."""
        while self._arrivals:
            self._arrivals.popleft()()
        step = self._core.step()
        if step is not None:
            self._hand_out(step)
        elif not self._arrivals:
            self._wake.wait()
            self._wake.clear()

    def _start(self, generation: TorchGeneration) -> None:
        self._generations[generation.group] = generation
        self._core.add(generation.group)

    def _drop(self, choices: Sequence[Choice]) -> None:
        self._core.drop(choices)
        self._forget(choices[0].group)

    def _forget(self, group: ChoiceGroup) -> None:
        if group.finished:
            self._generations.pop(group, None)

    def _hand_out(self, step: Step) -> None:
        """One callback in the event loop per request and step."""
        outputs: dict[ChoiceGroup, list[TokenOutput]] = {}
        for choice, output in step.outputs:
            outputs.setdefault(choice.group, []).append(output)
        for group, tokens in outputs.items():
            generation = self._generations[group]
            _notify(generation, generation.deliver, tokens)
        for choice, error in step.failures.items():
            if choice.group in self._generations:
                generation = self._generations[choice.group]
                _notify(generation, generation.fail, error)
        for group in {choice.group: None for choice in (*dict(step.outputs), *step.failures)}:
            self._forget(group)


def _notify(generation: TorchGeneration, callback: Callable[..., None], *args: object) -> None:
    """Runs the callback in the reader's event loop, if that still runs."""
    with suppress(RuntimeError):
        generation.loop.call_soon_threadsafe(callback, *args)
