"""The generations of one HTTP request as one sequence; closing it frees every slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from motet.engines.base import Engine, Generation, TokenOutput
from motet.server.jobs import Job

Event = tuple[int, TokenOutput]  # (job, output)


class Run:
    """Starts all jobs at once and merges their outputs as they come.

    Each generation is read by a task of its own, so that a cancelled request is closed even where the cancellation
    forbids its reader to wait for anything.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._generations: dict[int, Generation] = {}
        self._queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._readers = [asyncio.create_task(self._read(i, job)) for i, job in enumerate(jobs) if job.computes]

    @property
    def cached_tokens(self) -> int:
        return sum(generation.cached_tokens for generation in self._generations.values())

    def queued_of(self, job: int) -> float:
        """Seconds that the job waited for memory, or has waited so far."""
        generation = self._generations.get(job)
        return 0.0 if generation is None else generation.queued_seconds

    def cached_of(self, job: int) -> int:
        generation = self._generations.get(job)
        return 0 if generation is None else generation.cached_tokens

    async def _read(self, index: int, job: Job) -> None:
        try:
            generation = self._generations[index] = self._engine.generate(job.request)
            try:
                async for output in generation:
                    self._queue.put_nowait((index, output))
            finally:
                await generation.aclose()
            self._queue.put_nowait(None)
        except Exception as error:  # reaches the client through `outputs`
            self._queue.put_nowait(error)

    async def outputs(self, idle_seconds: float | None = None) -> AsyncIterator[Event | None]:
        """Outputs in the order they come; None whenever nothing came for `idle_seconds`.

        Raises:
            EngineError: one of the generations failed; the others are closed.
        """
        open_readers = len(self._readers)
        while open_readers:
            try:
                async with asyncio.timeout(idle_seconds):
                    event = await self._queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Exception):
                raise event
            if event is None:
                open_readers -= 1
            else:
                yield event

    def stop(self, job: int, choice: int) -> None:
        """No more tokens of this choice are needed."""
        self._generations[job].stop_choice(choice)

    def close(self) -> None:
        """Frees all slots within one step; harmless when all has ended."""
        for reader in self._readers:
            reader.cancel()
