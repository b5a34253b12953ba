"""What a request says that this server does not read: fields of bodies, fields in the query, and endpoints.

A field that would change the answer, or looks like a composition, is refused with its right name or place; any other is
ignored, and the answer's header says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from motet.composers.errors import MAX_SHOWN, show
from motet.composers.spec import strategy_fields
from motet.server.http.errors import ApiError, handle, invalid
from motet.server.http.foreign import (
    CARRIERS,
    ENDPOINTS,
    HARMLESS,
    MISSING,
    NOTHING,
    OF_ENDPOINTS,
    OF_MESSAGES,
    ON_BY_DEFAULT,
    SAME,
    Foreign,
)
from motet.server.http.headers import add_ignored
from motet.server.shapes.requests import (
    Body,
    ChatCompletionRequest,
    CompareRequest,
    CompletionRequest,
    Extra,
    Message,
)
from motet.server.shapes.token_requests import ScoreRequest, TokenizeRequest
from motet.settings import children, closest, nearest

NEAR = 0.82  # of two names' letters: `max_token` is near to `max_tokens`, `prompt_id` is not to `prompt`
MAX_NAMES = 64  # unknown names in one request; each is compared with all that are known
UNSUPPORTED = "unsupported_parameter"
ENDPOINT_BODIES = (ChatCompletionRequest, CompletionRequest, CompareRequest, ScoreRequest, TokenizeRequest)
COMPOSITIONS = ("composition", "compositions")
ELSEWHERE = "Another endpoint reads it; /docs says which."


def check_query(names: Iterable[str], fields: Collection[str]) -> None:
    """Raises ApiError (400): `fields` of the body in the query string, where they would be ignored."""
    for name in names:
        if name in COMPOSITIONS or name in fields:
            raise invalid(f"{show(name)} is read from the body alone, not from the query.", name, UNSUPPORTED)


def check_extras(extras: Iterable[Extra], body: Body, request: Request) -> None:
    """Of fields that are not known, of which there are some: refuses what would change the answer; the names (never
    the values) of what is ignored stand in the answer's header and in the log.

    Raises:
        ApiError: 400 naming the field, and what to write.
    """
    ignored: dict[str, None] = {}
    own = OF_ENDPOINTS.get(request.url.path, {})
    for extra in extras:
        if (reason := _refusal(extra, body, own)) is not None:
            raise invalid(f"{show(extra.path)} is not supported here. {reason}", extra.path, UNSUPPORTED)
        ignored[extra.name] = None
        if len(ignored) > MAX_NAMES:
            raise invalid(f"The body has more than {MAX_NAMES} names that are not known.", extra.path, UNSUPPORTED)
    names = ", ".join(ascii(name[:MAX_SHOWN])[1:-1][:MAX_SHOWN] for name in sorted(ignored))
    add_ignored(request, names)


def _refusal(extra: Extra, body: Body, own: Mapping[str, Foreign]) -> str | None:
    """Why the field cannot be ignored, and what to write; None where it can. `own`: what the endpoint has elsewhere."""
    name, value = extra.name, extra.value
    if _is_one_of(value, NOTHING):
        return None
    if name in HARMLESS or extra.owner is Message:
        hidden = _like_a_composition(value if name in COMPOSITIONS else _named_compositions(value))
        known = None if name in HARMLESS else OF_MESSAGES.get(name) or _misspelt(name[:MAX_SHOWN], extra.owner)
        return known or hidden
    if name == "best_of":
        n = getattr(body, "n", None) or 1
        return None if value == n else f"Only n of n ({n}) are drawn."
    if name in SAME and name not in own:
        ours, harmless = SAME[name]
        return None if _is_one_of(value, harmless) else f"Write {ours}."
    foreign = own.get(name) if extra.owner is type(body) else None
    if (foreign := foreign or _missing(name[:MAX_SHOWN], extra.owner)) is not None:
        return None if _is_one_of(value, foreign.harmless) else foreign.instead
    misspelt = _misspelt(name[:MAX_SHOWN], extra.owner)
    if value is False and name not in ON_BY_DEFAULT:
        return misspelt
    return _misplaced(name, extra.path, body) or misspelt or _like_a_composition(value)


def _missing(name: str, owner: type[Body]) -> Foreign | None:
    """What the server does not do, also as `enableThinking`; unless that spells a field of the object's own."""
    return MISSING.get(name) or (
        None if _spelling(name) in _by_spelling(owner) else _missing_spellings().get(_spelling(name))
    )


@cache
def _missing_spellings() -> Mapping[str, Foreign]:
    return {_spelling(name): foreign for name, foreign in MISSING.items()}


def _is_one_of(value: Any, harmless: Iterable[Any]) -> bool:
    return any(value == one and type(value) is type(one) for one in harmless)


def _misplaced(name: str, path: str, body: Body) -> str | None:
    if name in CARRIERS:
        return CARRIERS[name]
    if name in type(body).model_fields:
        return f"It stands beside 'model', not inside of {path.rpartition('.')[0]!r}."
    if name in _fields_of_all():
        return ELSEWHERE
    if name == "strategy":
        return "It belongs into 'composition'."
    return "It belongs into 'composition', beside 'strategy'." if name in strategy_fields() else None


def _like_a_composition(value: Any) -> str | None:
    is_one = any("strategy" in part for part in _objects(value))
    return "It looks like a composition: that stands under 'composition', beside 'model'." if is_one else None


def _named_compositions(value: Any) -> list[Any]:
    """What stands under a composition's name in free notes (`metadata`), which may speak of strategies of their own."""
    return [part[name] for part in _objects(value) for name in COMPOSITIONS if name in part]


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a value."""
    level = [value]
    while level:
        yield from (item for item in level if isinstance(item, dict))
        level = [child for item in level for child in children(item)]


@lru_cache(4096)
def _misspelt(name: str, owner: type[Body]) -> str | None:
    own = _by_spelling(owner)
    if (near := closest(_spelling(name), own, NEAR)) is not None:
        return f"Did you mean {own[near]!r}?"
    near = closest(name, strategy_fields(), NEAR) if owner is not Message else None
    return None if near is None else f"Did you mean {near!r}, inside of 'composition'?"


def _spelling(name: str) -> str:
    """The same for `topP`, `top-p` and `top_p`."""
    return "".join(char for char in name[:MAX_SHOWN] if char.isalnum()).lower()


@cache
def _by_spelling(kind: type[Body]) -> Mapping[str, str]:
    """Spelling → the name to write, of an object's own fields and of what others call them."""
    of_others = {_spelling(name): ours for name, (ours, _) in SAME.items()} if "model" in kind.model_fields else {}
    return of_others | {_spelling(name): name for name in kind.model_fields}


@cache
def _fields_of_all() -> Collection[str]:
    return {name for kind in ENDPOINT_BODIES for name in kind.model_fields}


async def unknown_endpoint(request: Request, error: HTTPException) -> Response:
    """404 with the endpoint that was meant; what else is not found says so itself."""
    if isinstance(error, ApiError):
        return await handle(request, error)
    path = request.url.path
    hint = f" Use {ENDPOINTS[path]}." if path in ENDPOINTS else nearest(path, request.app.state.paths)
    message = f"There is no endpoint {show(path)}.{hint} GET /docs shows all."
    return await handle(request, ApiError(404, message, code="unsupported_endpoint"))
