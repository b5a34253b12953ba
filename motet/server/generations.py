"""What the engine computes of one request: all its jobs, their outputs merged as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence

from motet.engines.base import Engine, Generation
from motet.engines.outputs import TokenOutput
from motet.server.http.errors import ApiError
from motet.server.http.turns import Turn, Turns
from motet.server.prepare import Job

MAX_UNREAD = 1 << 16  # numbers: about 8 MiB
STALLED_S = 1.0  # one output, of some kilobytes, has been in sending for so long
JobOutput = tuple[int, TokenOutput]  # (job, output)


def _numbers(output: TokenOutput) -> int:
    """How many ids with log-probs an output holds; each takes about a hundred bytes."""
    if output.forced:
        return 0
    trace = output.trace
    if trace is None:
        return 1 + len(output.top)
    voiced = 0 if trace.voices is None else sum(2 + len(one.members) for one in trace.voices.alternatives)
    tops = len(output.top) + len(trace.base_top) + len(trace.composed_top)
    return 1 + tops + len(trace.member_logprobs) + voiced


class ClientBehind(ApiError):
    """A client that takes nothing of what was computed for it."""

    def __init__(self) -> None:
        super().__init__(408, "The client did not read its answer; it was ended.", code="client_too_slow")


class Generations:
    """Starts all jobs at once and merges their outputs as they come. For a client that takes nothing for `STALLED_S` up
    to `MAX_UNREAD` is kept; then the request is ended.

    Each generation is read by a task of its own, so that a cancelled request is closed even where the cancellation
    forbids its reader to wait for anything.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job], turns: Turns) -> None:
        self._engine = engine
        self._turns = turns
        self._jobs = list(jobs)
        self._num_first = len(jobs)
        self._generations: dict[int, Generation] = {}
        self._queue: asyncio.Queue[JobOutput | Exception | None] = asyncio.Queue()
        self._unread = 0  # numbers in the queue
        self._busy_since: float | None = None  # when the output that is being sent was taken from the queue
        self._readers = [asyncio.create_task(self._read(i, job)) for i, job in enumerate(jobs) if job.computes]
        self._open = len(self._readers)

    def start(self, job: Job, choices: Collection[int]) -> int:
        """One more job, of whose choices these alone are wanted; its number. Called while outputs are read."""
        self._jobs.append(job)
        self._readers.append(asyncio.create_task(self._read(len(self._jobs) - 1, job, choices)))
        self._open += 1
        return len(self._jobs) - 1

    @property
    def cached_tokens(self) -> int:
        """Of the jobs that it began with: the others read the same prompts."""
        return sum(map(self.cached_of, range(self._num_first)))

    def queued_of(self, job: int) -> float:
        """Seconds that the job waited for memory; 0 until its first token is there."""
        generation = self._generations.get(job)
        return 0.0 if generation is None else generation.queued_seconds

    def cached_of(self, job: int) -> int:
        generation, allow = self._generations.get(job), self._jobs[job].allow
        is_hidden = allow is not None and not allow.cached_tokens
        return 0 if generation is None or is_hidden else generation.cached_tokens

    async def _read(self, index: int, job: Job, choices: Collection[int] | None = None) -> None:
        """`choices`: those that are wanted; None: all."""
        try:
            await self._turns.take()  # to begin many choices takes milliseconds
            generation = self._generations[index] = self._engine.generate(job.request)
            for unwanted in () if choices is None else set(range(job.request.n)) - set(choices):
                generation.stop_choice(unwanted)
            try:
                async for output in generation:
                    self._keep(index, output if job.allow is None else job.reported(output))
            finally:
                await generation.aclose()
            self._queue.put_nowait(None)
        except Exception as error:  # reaches the client through `outputs`
            if isinstance(error, ClientBehind):
                self._drop_all()
            self._queue.put_nowait(error)

    def _keep(self, index: int, output: TokenOutput) -> None:
        """Raises ClientBehind. A prompt's tokens come all at once, and count as nothing."""
        self._unread += _numbers(output)
        if self._unread > MAX_UNREAD and self._stalled():
            raise ClientBehind
        self._queue.put_nowait((index, output))

    def _stalled(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > STALLED_S

    def _drop_all(self) -> None:
        """What nobody reads, and what the others still compute."""
        while not self._queue.empty():
            self._queue.get_nowait()
        for reader in self._readers:
            if reader is not asyncio.current_task():
                reader.cancel()

    async def outputs(self, idle_seconds: float | None = None) -> AsyncIterator[JobOutput | None]:
        """Outputs in the order they come; None whenever nothing came for `idle_seconds`.

        Raises:
            EngineError: one of the generations failed; the others are closed.
        """
        turn = Turn(self._turns)
        while self._open:
            try:
                async with asyncio.timeout(idle_seconds):
                    event = await self._queue.get()
            except TimeoutError:
                yield None
                continue
            await turn.go_on()
            if isinstance(event, Exception):
                raise event
            if event is None:
                self._open -= 1
            else:
                self._unread -= _numbers(event[1])
                self._busy_since = time.monotonic()
                yield event
                self._busy_since = None

    def stop(self, job: int, choice: int) -> None:
        """No more tokens of this choice are needed."""
        self._generations[job].stop_choice(choice)

    def close(self) -> None:
        """Frees all slots within one step; harmless when all has ended."""
        for reader in self._readers:
            reader.cancel()
