"""The embedded engine: a thread that steps, and the asynchronous face that the server talks to.

One step: take what has arrived, admit what fits, run every distinct model once, hand out the tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import torch

from motet.composers.plan import Plan
from motet.server.engines.base import EngineError, EngineStats, GenerationRequest, ModelInfo, TokenOutput
from motet.server.engines.torch.choice import Choice, ChoiceGroup, choices_of
from motet.server.engines.torch.model import Member
from motet.server.engines.torch.scheduler import EngineSettings, Scheduler
from motet.server.engines.torch.step import StepResult, StepRunner

log = logging.getLogger(__name__)


class TorchGeneration:
    """A running request of the embedded engine (see `base.Generation`). Used from one event loop."""

    def __init__(self, engine: TorchEngine, group: ChoiceGroup, loop: asyncio.AbstractEventLoop) -> None:
        self.group = group
        self.loop = loop
        self.cached_tokens = 0
        self._engine = engine
        self._ready: deque[TokenOutput] = deque()
        self._error: EngineError | None = None
        self._open = {choice.index for choice in group.choices}
        self._wake = asyncio.Event()

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

    def deliver(self, outputs: Sequence[TokenOutput], cached_tokens: int) -> None:
        """Called in the event loop, once per step."""
        self.cached_tokens = cached_tokens
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
        self._members = dict(members)
        self._scheduler = Scheduler(self._members, settings or EngineSettings())
        self._runner = StepRunner()
        self._generations: dict[ChoiceGroup, TorchGeneration] = {}  # engine thread only
        self._arrivals: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="motet-engine", daemon=True)
        self._thread.start()

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return {name: member.info for name, member in self._members.items()}

    def supports(self, plan: Plan) -> str | None:
        widths: dict[int, str] = {}
        for stream in plan.streams:
            if stream.model not in self._members:
                return f"model {stream.model!r} is not loaded"
            widths.setdefault(self._members[stream.model].vocab_size, stream.model)
        if len(widths) > 1:
            sizes = ", ".join(f"{name!r} has {width}" for width, name in widths.items())
            return f"the members' vocabularies differ in size: {sizes}"
        return None

    def check(self, request: GenerationRequest) -> int:
        if not request.forced and request.sampling.max_tokens < 1:
            raise ValueError("a request must score or generate at least one token")
        if not all(request.contexts):
            raise ValueError("every stream needs a context of at least one token")
        return self._scheduler.check(request)

    def generate(self, request: GenerationRequest) -> TorchGeneration:
        self.check(request)
        members = [self._members[stream.model] for stream in request.plan.streams]
        generation = TorchGeneration(self, choices_of(request, members), asyncio.get_running_loop())
        self._post(lambda: self._start(generation))
        return generation

    def drop(self, choices: Sequence[Choice]) -> None:
        """Frees the choices before the next step."""
        self._post(lambda: self._drop(choices))

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_bytes_used=sum(
                slot.reserved * member.cache.bytes_per_token
                for member in self._members.values()
                for slot in member.cache.active
            ),
            kv_bytes_budget=self._scheduler.settings.kv_cache_bytes,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
            steps=self._steps,
            forward_seconds={name: member.forward_seconds for name, member in self._members.items()},
        )

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    # What follows runs in the engine's own thread.

    def _post(self, action: Callable[[], None]) -> None:
        if self._closing:
            raise EngineError("the engine is closed")
        self._arrivals.append(action)
        self._wake.set()

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._closing:
            if not self._step():
                self._wake.wait()
                self._wake.clear()
        error = EngineError("the engine was stopped")
        for generation in list(self._generations.values()):
            self._tell(generation.loop, generation.fail, error)

    def _step(self) -> bool:
        """One step; whether there was anything to do."""
        while self._arrivals:
            self._arrivals.popleft()()
        self._scheduler.admit()
        work = self._scheduler.plan()
        if not work:
            return False
        self._steps += 1
        try:
            result = self._runner.run(work)
        except Exception as error:  # compose or sampling: every choice of the step is lost, the engine is not
            log.exception("a step failed")
            reason = EngineError(f"the step failed: {type(error).__name__}")
            result = StepResult([], [(item.choice, reason) for item in work])
        self._hand_out(result)
        return True

    def _start(self, generation: TorchGeneration) -> None:
        self._generations[generation.group] = generation
        for choice in generation.group.choices:
            self._scheduler.add(choice)

    def _drop(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            if not choice.finished:
                self._scheduler.remove(choice)
        self._forget(choices[0].group)

    def _forget(self, group: ChoiceGroup) -> None:
        if group.finished:
            self._generations.pop(group, None)

    def _hand_out(self, result: StepResult) -> None:
        """One message to the event loop per request and step."""
        outputs: dict[ChoiceGroup, list[TokenOutput]] = {}
        for choice, output in result.outputs:
            outputs.setdefault(choice.group, []).append(output)
        for group, tokens in outputs.items():
            generation = self._generations[group]
            self._tell(generation.loop, generation.deliver, tokens, group.choices[0].cached_tokens)
        for choice, output in result.outputs:
            if output.finish is not None:
                self._scheduler.remove(choice)
                self._forget(choice.group)
        for choice, error in result.failed:
            self._fail(choice, error)

    def _fail(self, choice: Choice, error: EngineError) -> None:
        """A failed choice ends its whole request."""
        generation = self._generations.get(choice.group)
        if generation is not None:
            self._tell(generation.loop, generation.fail, error)
            self._drop(choice.group.choices)

    def _tell(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)
