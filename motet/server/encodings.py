"""The texts of one request as token ids: every text once, for as long as a request may take and its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from motet.operator.loaded import LoadedModel
from motet.server.http.errors import PROMPT_TOO_LONG, ApiError, invalid

T = TypeVar("T")
TOKENIZING = CapacityLimiter(2)  # threads of their own
PIECE = 1 << 16  # characters whose tokens are counted at once
LIKELY = 8  # characters of a token at most, in a text that is not made to be cheap: it is not counted beforehand
SECONDS = 10.0


class ClientLeft(Exception):
    """Nobody waits for the tokens any more."""


class Encodings:
    """Used by one thread; `stop` is called from others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None
        self._characters = 0
        self._stopped = False
        self._ids: dict[tuple[int, str, bool, bool], list[int]] = {}

    def stop(self) -> None:
        """The client has left: no more texts are begun."""
        self._stopped = True

    def ids(self, text: str, member: LoadedModel, *, special: bool = False, behind: bool = False) -> list[int]:
        """Token ids; `special`: with those that the tokenizer adds; `behind`: as they are behind other text. Whoever
        changes them changes a copy.

        Raises:
            ApiError: 400, the texts before took more than `SECONDS`.
            ClientLeft: after `stop`.
        """
        key = id(member.tokenizer), text, special, behind
        if key not in self._ids:
            self.check()
            self._characters += len(text)
            tokenizer = member.tokenizer
            self._ids[key] = (
                tokenizer.encode_behind(text) if behind else tokenizer.encode(text, add_special_tokens=special)
            )
        return self._ids[key]

    def check_length(self, text: str, member: LoadedModel, param: str) -> None:
        """Counts a text's tokens piece by piece where it is too long to fit but for very long tokens, so that refusing
        it costs no more than two contexts of the model. A cut makes a token or two more, never twice as many.

        Raises:
            ApiError: 400 context_length_exceeded; and as `ids`.
        """
        most, count = member.info.max_model_len, 0
        if len(text) <= max(PIECE, LIKELY * most):
            return
        for begin in range(0, len(text), PIECE):
            self.check()
            count += len(member.tokenizer.encode(text[begin : begin + PIECE]))
            if count > 2 * most:
                raise _too_long(member, count, param)

    def check(self) -> None:
        """Raises as `ids` does."""
        if self._stopped:
            raise ClientLeft
        now = self._clock()
        self._began = now if self._began is None else self._began
        if now - self._began > SECONDS:
            raise self._too_slow()

    def _too_slow(self) -> ApiError:
        read = f"{len(self._ids):,} texts with {self._characters:,} characters"
        message = (
            f"Tokenizing took more than {SECONDS:g} s, for {read} so far: send fewer or shorter ones, or token ids."
        )
        public = "Tokenizing took too long: send fewer or shorter texts, or token ids."
        return invalid(message, code="tokenizing_too_long", public=public)


def _too_long(member: LoadedModel, count: int, param: str) -> ApiError:
    limit = f"The maximum context length of model {member.info.name!r} is {member.info.max_model_len} tokens."
    message = f"{limit} However, your prompt has more than {count // 2} tokens."
    return invalid(message, param, "context_length_exceeded", public=PROMPT_TOO_LONG)


async def tokenized(work: Callable[[Encodings], T], limiter: CapacityLimiter | None = None) -> T:
    """What `work` makes of a request's texts, in a thread (of `TOKENIZING`, or another limiter's), which begins no more
    of them once the client has left."""
    encodings = Encodings()

    def begun() -> T:
        encodings.check()
        return work(encodings)

    working = asyncio.ensure_future(to_thread.run_sync(begun, limiter=limiter or TOKENIZING))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        encodings.stop()
        working.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # which nobody reads
        raise
