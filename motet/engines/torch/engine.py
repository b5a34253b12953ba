"""The embedded engine: a thread that steps, and the asynchronous interface that the server talks to.

One cycle: take what has arrived, compute a step of it (`core`), hand out the tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from motet.composers.plan import Plan
from motet.composers.rules import EscalationRule
from motet.engines.base import (
    SIDES,
    EngineError,
    EngineStopped,
    GenerationRequest,
    ModelLeft,
    refuse_empty,
    unlike_clusters,
)
from motet.engines.drawn import is_drawn
from motet.engines.outputs import EngineStats, StepTimes, TokenOutput
from motet.engines.torch.adapters import Adapter
from motet.engines.torch.choice import Choice, ChoiceGroup
from motet.engines.torch.core import EngineCore
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings
from motet.engines.torch.soft_prompts import Model, SoftPrompt
from motet.engines.torch.step import Step
from motet.models.info import ModelInfo

log = logging.getLogger(__name__)
MAX_RESTARTS = 5  # within RESTART_SECONDS: what ends the engine again and again needs another process
RESTART_SECONDS = 60.0
CLOSE_POLL_SECONDS = 0.005


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
        self.cached_tokens = 0
        self.queued_seconds = 0.0

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
        first = self.group.choices[0]
        self.cached_tokens, self.queued_seconds = first.cached_tokens, first.queued_seconds
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
        models: loaded models, adapters of some and soft prompts in front of some, by registry name.
        settings: memory and chunk sizes.
        restart: whether a defect that ends the thread is followed by a fresh one. Lost are the requests in flight,
            which fail, and all cached prefixes; the weights stay.
    """

    def __init__(
        self, models: Mapping[str, Model], settings: EngineSettings | None = None, *, restart: bool = False
    ) -> None:
        self._core = EngineCore(models, settings)
        self._restart = restart
        self._restarts: list[float] = []
        self._last_stats: EngineStats | None = None  # of a closed engine
        self._report: Callable[[StepTimes], None] | None = None
        self._generations: dict[ChoiceGroup, TorchGeneration] = {}  # engine thread only
        self._arrivals: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._closing_lock = threading.Lock()  # nothing arrives between the last look at the arrivals and the end
        self._thread = self._started()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="motet-engine", daemon=True)
        thread.start()
        return thread

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return {name: model.info for name, model in self._core.models.items()}

    def supports(self, plan: Plan) -> str | None:
        models = self._core.models
        if (absent := self._core.absent(plan)) is not None:
            self._refuse_when_closed()
            return f"model {absent!r} is not loaded"
        if isinstance(plan.rule, EscalationRule):
            return SIDES
        base = plan.streams[0].model
        if plan.exits and models[base].member.exits is None:
            return f"model {base!r} cannot be left early: it has other parts than layers, a final norm and a head"
        if not all(own.layers for own in plan.exits):
            return "the composition leaves its base early, and was planned without knowing how deep that is"
        if plan.heads and models[base].info.head not in plan.heads:
            wanted = " or ".join(plan.heads)
            return f"the composition needs a {wanted} that was trained on its base, and the model {base!r} has none"
        return unlike_clusters(plan, models[base].info) if plan.heads else None

    def backbone(self, name: str) -> Member | Adapter | None:
        """The model of that name, that new soft prompts may stand in front of, and new adapters beside where it has
        weights of its own; None: there is none."""
        model = self._core.models.get(name)
        return None if isinstance(model, SoftPrompt) else model

    def attach(self, model: Model) -> None:
        """One more model, under a name that no other has; for requests after the return. Blocks for a step: not to be
        called from the event loop.

        Raises:
            EngineStopped: the engine has ended.
        """
        self._done(lambda: self._core.use({**self._core.models, model.name: model}))

    def keep(self, name: str) -> bool:
        """A model that was to leave stays; whether it is still here. Blocks as `attach` does."""
        self._done(lambda: self._core.leaving.pop(name, None))
        return name in self._core.models

    def _done(self, action: Callable[[], object]) -> None:
        """Waits until the engine's thread has done it. Raises EngineStopped."""
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._post(act)
        while not done.wait(1.0):
            if not self._thread.is_alive():
                raise EngineStopped("the engine is closed")

    def detach(self, name: str, after: float) -> None:
        """The model goes when nothing that runs reads it any more, `after` seconds from now at the earliest."""
        self._post(lambda: self._core.leaving.update({name: time.monotonic() + after}))

    def check(self, request: GenerationRequest) -> int:
        self._refuse_when_closed()
        refuse_empty(request)
        self._core.check_loaded(request.plan)
        return self._core.scheduler.check(request)

    def draws_members(self, request: GenerationRequest) -> bool:
        return is_drawn(request)

    def generate(self, request: GenerationRequest) -> TorchGeneration:
        self._refuse_when_closed()
        generation = TorchGeneration(self, self._core.group(request), asyncio.get_running_loop())
        self._post(lambda: self._start(generation))
        return generation

    def drop(self, choices: Sequence[Choice]) -> None:
        """Frees the choices before the next step."""
        with suppress(EngineStopped):  # an engine that has ended holds no slots
            self._post(lambda: self._drop(choices))

    def watch_steps(self, report: Callable[[StepTimes], None]) -> None:
        self._report = report

    def stats(self) -> EngineStats:
        """Of an engine that is closed, those that it ended with."""
        return replace(self._last_stats or self._core.stats(), restarts=len(self._restarts))

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    async def close(self) -> None:
        with self._closing_lock:
            self._closing = True
        self._wake.set()
        # not joined in another thread: nobody could give up waiting for that one
        while self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_SECONDS)
        self._last_stats = self._last_stats or self._core.stats()
        self._core = EngineCore({}, self._core.scheduler.settings)  # the weights go, whoever still holds the engine

    def _refuse_when_closed(self) -> None:
        """It has no models any more: what asks for them is told so, and not that they are unknown."""
        if self._closing:
            raise EngineStopped("the engine is closed")

    # What follows runs in the engine's own thread.

    def _post(self, action: Callable[[], None]) -> None:
        with self._closing_lock:
            self._refuse_when_closed()
            self._arrivals.append(action)
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._cycle()
        except BaseException as error:  # also what is no Exception, as an extension's panic: nobody may wait for ever
            log.exception("the engine died")
            stopped = EngineStopped(f"the engine died: {type(error).__name__}")
            if self._may_restart():
                self._begin_anew(stopped)
                return
        else:
            stopped = EngineStopped("the engine was stopped")
        self._end(stopped)

    def _end(self, error: EngineStopped) -> None:
        """Takes no more requests, then fails all that are left, also those that arrived last."""
        with self._closing_lock:
            self._closing = True
        while self._arrivals:  # and forgets them: they hold models
            with suppress(BaseException):
                self._arrivals.popleft()()
        self._fail_all(error)

    def _fail_all(self, error: EngineStopped) -> None:
        """Whatever state the engine is in, every reader is told first; then their slots go."""
        generations = list(self._generations.values())
        for generation in generations:
            _notify(generation, generation.fail, error)
        for generation in generations:
            with suppress(BaseException):
                self._drop(generation.group.choices)
        self._generations.clear()

    def _may_restart(self) -> bool:
        recent = [when for when in self._restarts if when > time.monotonic() - RESTART_SECONDS]
        return self._restart and not self._closing and len(recent) < MAX_RESTARTS

    def _begin_anew(self, error: EngineStopped) -> None:
        """Another thread over empty caches; what has arrived meanwhile is its first work."""
        lost = len(self._generations)
        self._fail_all(error)
        for member in self._core.members.values():
            member.cache.clear()
        leaving = self._core.leaving
        self._core = EngineCore(self._core.models, self._core.scheduler.settings)
        self._core.leaving.update(leaving)
        self._restarts.append(time.monotonic())
        log.warning("the engine begins anew: %d requests and all cached prefixes are lost", lost)
        self._thread = self._started()

    def _cycle(self) -> None:
        """What has arrived, then one step; sleeps while there is neither."""
        while self._arrivals:
            self._arrivals.popleft()()
        if self._core.leaving:
            self._core.let_go()
        began = time.time_ns()
        step = self._core.step()
        if step is not None:
            if self._report is not None:
                self._report(self._times(step, began))
            self._hand_out(step)
        elif not self._arrivals:
            self._wake.wait(1.0 if self._core.leaving else None)
            self._wake.clear()

    def _times(self, step: Step, began: int) -> StepTimes:
        """What was computed: what goes on, and what has ended with this step."""
        outputs = [choice for choice, _ in step.outputs]
        choices = dict.fromkeys([*self._core.scheduler.running, *outputs, *step.failures])
        requests = dict.fromkeys(choice.group.request.request_id for choice in choices)
        return StepTimes(began, time.time_ns(), tuple(requests), len(choices), len(outputs), len(step.failures))

    def _start(self, generation: TorchGeneration) -> None:
        try:
            self._core.check_loaded(generation.group.request.plan)  # it was asked for in another thread
        except ModelLeft as left:
            _notify(generation, generation.fail, left)
            return
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
