"""What every handler needs, put together once when the server starts; and how many choices are in flight."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from fastapi import Depends, Request, Response

from motet.engines.base import Engine
from motet.operator.access import NOTHING, Access, Grant
from motet.operator.file import Configuration
from motet.operator.policies import Allow
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.operator.visible import VisibleRegistry
from motet.server.http.bodies import JsonRoute
from motet.server.http.errors import busy, invalid
from motet.server.http.metrics import Metrics
from motet.server.http.rates import Rates
from motet.server.http.turns import Turns

if TYPE_CHECKING:
    from motet.server.http.tracing import Traces

WINDOW_S = 60.0  # of places that became free: what a client that found none is told to wait


class FreedPlaces:
    """Counts what was freed within the last minute, in steps of a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._freed: deque[tuple[float, int]] = deque()  # (second, places), oldest first

    def freed(self, places: int) -> None:
        second = math.floor(self._clock())
        if self._freed and self._freed[-1][0] == second:
            places += self._freed.pop()[1]
        self._freed.append((second, places))
        self._forget()

    def wait(self, places: int) -> int:
        """Whole seconds, 1 to 60, in which so many places become free at the speed of the last minute; where none did,
        as long again as it has lasted."""
        self._forget()
        span = min(WINDOW_S, self._clock() - self._began)
        seconds = places * span / max(1, sum(count for _, count in self._freed))
        return math.ceil(min(max(seconds, 1.0), WINDOW_S))

    def _forget(self) -> None:
        while self._freed and self._freed[0][0] < self._clock() - WINDOW_S:
            self._freed.popleft()


class Reservation:
    """Choices that a request may have in flight; given back once, however the request ends."""

    def __init__(self, admission: Admission, choices: int, key: str | None) -> None:
        self._admission = admission
        self._choices = choices
        self.key = key

    def spend(self, tokens: int) -> None:
        """Counts tokens of the prompt or of the answer for the key."""
        self._admission.spend(tokens, self.key)

    def release(self) -> None:
        self._admission.give_back(self._choices, self.key)
        self._choices = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


class Admission:
    """Counts choices from before their prompt is tokenized until their answer is over.

    Reserving is one step of the event loop, so that two requests never take the same place.
    """

    def __init__(
        self,
        max_choices: int,
        max_choices_per_key: int | None = None,
        tokens_per_minute_per_key: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_choices = max_choices
        self.max_choices_per_key = max_choices_per_key
        self.draining = False
        self.idle = asyncio.Event()  # set while nothing is in flight
        self.idle.set()
        self._taken = 0
        self._by_key: Counter[str] = Counter()
        self._tokens = Rates(tokens_per_minute_per_key)
        self._freed = FreedPlaces(clock)
        self._freed_by_key: defaultdict[str, FreedPlaces] = defaultdict(lambda: FreedPlaces(clock))

    @property
    def taken(self) -> int:
        return self._taken

    def reserve(self, choices: int, key: str | None = None) -> Reservation:
        """
        Raises:
            ApiError: 503 with Retry-After while the server drains or is full, 429 where the key has its share, 400
                for more choices than can ever be taken.
        """
        self.check_running()
        limit = min(self.max_choices, self.max_choices_per_key or self.max_choices)
        if choices > limit:
            raise invalid(f"The request asks for {choices} choices, at most {limit} are allowed at once.", "n")
        self.check_room(choices)
        if key and self.max_choices_per_key and (missing := self._by_key[key] + choices - self.max_choices_per_key) > 0:
            wait = self._freed_by_key[key].wait(missing)
            said = f"This key has {self.max_choices_per_key} places, all taken; try again."
            raise busy(429, said, "quota_exceeded", wait)
        if key and (wait := self._tokens.wait(key)):
            raise busy(429, f"This key has {self._tokens.limit} tokens per minute.", "rate_limit_exceeded", wait)
        self.idle.clear()
        self._taken += choices
        self._by_key[key or ""] += choices
        return Reservation(self, choices, key)

    def check_running(self) -> None:
        """Raises ApiError (503): the server drains."""
        if self.draining:
            raise busy(503, "The server is shutting down.", "shutting_down")

    def check_room(self, choices: int = 1) -> None:
        """Raises ApiError (503): the server drains, or has not so many places."""
        self.check_running()
        if (missing := self._taken + choices - self.max_choices) > 0:
            wait = self._freed.wait(missing)
            raise busy(503, f"All {self.max_choices} places are taken; try again.", "queue_full", wait)

    def spend(self, tokens: int, key: str | None) -> None:
        if key:
            self._tokens.spend(key, tokens)

    def give_back(self, choices: int, key: str | None) -> None:
        if not choices:
            return
        self._freed.freed(choices)
        if key and self.max_choices_per_key:
            self._freed_by_key[key].freed(choices)
        self._taken -= choices
        if not self._taken:
            self.idle.set()
        self._by_key[key or ""] -= choices
        if not self._by_key[key or ""]:
            del self._by_key[key or ""]


@dataclass
class Upkeep:
    """What the server runs by, while it is kept up: the file as it was last read, and models that are not loaded."""

    configuration: Configuration
    without: frozenset[str] = frozenset()
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Service:
    config: ServerConfig
    engine: Engine
    registry: Registry
    metrics: Metrics
    admission: Admission
    kv_budget: int  # bytes
    access: Access = field(default_factory=Access)
    upkeep: Upkeep | None = None  # None: no operator's file
    allow: Allow | None = None  # what a policy's keys may set and see; None: no policy
    traces: Traces | None = None
    turns: Turns = field(default_factory=Turns)
    _views: dict[str | None, Service] = field(default_factory=dict["str | None", "Service"], repr=False)

    @classmethod
    def assemble(
        cls,
        config: ServerConfig,
        engine: Engine,
        registry: Registry,
        access: Access | None = None,
        configuration: Configuration | None = None,
    ) -> Service:
        """`access`: by default the configuration's keys, without policies. `configuration`: what may be read anew."""
        admission = Admission(config.max_choices, config.max_choices_per_key, config.max_tokens_per_minute_per_key)
        known = access or Access.of(config)
        upkeep = None if configuration is None else Upkeep(configuration)
        traces = _traces(config.otlp_traces_endpoint)
        budget = engine.stats().kv_bytes_budget
        return cls(config, engine, registry, Metrics(engine), admission, budget, known, upkeep, traces=traces)

    def renewed(self, registry: Registry, access: Access) -> Service:
        """The same server with other names, keys and policies."""
        return replace(self, registry=registry, access=access, _views={})

    def under(self, grant: Grant | None) -> Service:
        """The service as the key of a grant has it: what handlers see of models is what its policy shows."""
        if grant is None or grant.rules is None:
            return self
        if grant.policy not in self._views:
            # this service's own rules of that name: another's grant, from before a reload, may not stay behind
            rules = self.access.policies.get(grant.policy or "", NOTHING)
            view = replace(self, registry=VisibleRegistry(self.registry, rules), allow=rules.allow, _views={})
            self._views[grant.policy] = view
        return self._views[grant.policy]

    @property
    def hidden(self) -> frozenset[str] | None:
        """Names that no answer may hold; None: it may say everything."""
        may_know = self.allow is None or self.allow.members
        return None if may_know or not isinstance(self.registry, VisibleRegistry) else self.registry.hidden


def _traces(endpoint: str | None) -> Traces | None:
    if endpoint is None:
        return None
    from motet.server.http.tracing import Traces  # its libraries are an extra

    return Traces.to(endpoint)


async def get_service(request: Request) -> Service:
    """What the request's key may see of the server, as it was when the request came. Asynchronous, as FastAPI runs a
    synchronous dependency of every request in a thread."""
    return cast(Service, request.scope["state"]["service"])


Served = Annotated[Service, Depends(get_service)]


class AnsweringRoute(JsonRoute):
    """A route whose answers take places: while there is none, bodies are not even read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            (await get_service(request)).admission.check_room()
            return await handler(request)

        return handle
