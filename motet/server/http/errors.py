"""Every refusal, in its API's shape: OpenAI's `{"error": {"message", "type", "param", "code"}}`, or Anthropic's."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from http import HTTPStatus
from itertools import accumulate
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from motet.composers.errors import MAX_PROBLEMS, MAX_SHOWN, CompositionError, sentences
from motet.engines.base import EngineError, EngineStopped, GrammarFailed, ModelLeft, NoTokenPossible, RequestTooLarge
from motet.operator.registry import UnknownModel
from motet.operator.visible import NotAllowed
from motet.settings import texts_of

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
NO_MODEL = "model_not_found"
MAX_MESSAGE = 1700  # bytes in JSON: with the field's name and the rest, an answer stays below two KiB
MAX_READ = 5 * MAX_PROBLEMS  # of pydantic's problems: a field of several types has one for each
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# what an engine or a composition says of its parts: keys that may not know them read that something is wrong, not what
OF_PARTS = (EngineError, RequestTooLarge)
CODES_OF_PARTS = frozenset({
    "request_too_large", "unsupported_composition", "unlike_contexts", "vocabulary_mismatch", "expert_mismatch",
    "approximate_vocabulary", "gate_failed",
})  # fmt: skip
UNSAID = {500: "The server failed on this request.", 503: "The server cannot serve this request now."}
# what is told of a prompt where the reason is a member's
PROMPT_TOO_LONG = "Your prompt is longer than the maximum context length."
PROMPT_NOT_AS_TOKENS = "The prompt is not read as tokens: send text, not tokens."
MESSAGES = "/v1/messages"  # Anthropic's endpoints, whose clients read errors of their own shape
MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


class ApiError(HTTPException):
    """An answer other than 2xx. `param` is the dotted path of the request's field that is wrong, `public` what keys
    read that may not know what is composed, where the message says more than that."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        public: str | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code
        self.public = public

    def __str__(self) -> str:
        return self.detail


# refusals of what was sent, before or beside what is known of models
OF_REQUESTS = (ApiError, RequestValidationError, NotAllowed)


def invalid(message: str, param: str | None = None, code: str | None = None, *, public: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code, public=public)


def busy(status: int, message: str, code: str, retry_after: int = 1) -> ApiError:
    """503 or 429; clients wait for `retry_after` seconds before they try again."""
    return ApiError(status, message, code=code, headers={"retry-after": str(retry_after)})


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    kind = TYPES.get(status, INVALID if status < 500 else "server_error")
    param = param and _short(param, MAX_SHOWN)
    return {"error": {"message": _short(message, MAX_MESSAGE), "type": kind, "param": param, "code": code}}


def _short(text: str, most: int) -> str:
    """The beginning of a text that is longer than so many bytes in JSON."""
    if len(text) <= most and _json_bytes(text) <= most:
        return text
    sizes = accumulate(map(_json_bytes, text[:most]))
    return text[: sum(size <= most - 3 for size in sizes)] + "…"


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")) - 2


def messages_error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """The same in Anthropic's shape."""
    kind = MESSAGES_TYPES.get(status, INVALID if status < 500 else "api_error")
    told = cast("dict[str, object]", error_body(status, message, param, code)["error"])
    return {"type": "error", "error": {**told, "type": kind}}


def error_response(error: ApiError, path: str) -> JSONResponse:
    """In the shape of the API that `path` belongs to."""
    write = messages_error if path.startswith(MESSAGES) else error_body
    body = write(error.status_code, error.detail, error.param, error.code)
    return JSONResponse(body, error.status_code, error.headers)


def as_api_error(error: Exception) -> ApiError:
    """What the client reads about an exception raised anywhere while its request was handled."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return _from_http(error)
        case RequestValidationError():
            return _from_validation(error)
        case NotAllowed():
            return ApiError(403, str(error), param=error.param, code="policy_denied")
        case CompositionError():
            return invalid(error.message, error.param, error.code)
        case UnknownModel():
            return ApiError(404, str(error), param="model", code=NO_MODEL)
        case RequestTooLarge():
            return invalid(str(error), code="request_too_large")
        case NoTokenPossible():
            return invalid(str(error), code="no_token_possible")
        case GrammarFailed():
            return invalid(str(error), code="grammar_failed")
        case ModelLeft():
            return busy(503, str(error), "model_unloaded")
        case EngineStopped():
            return busy(503, str(error), "engine_stopped")
        case EngineError():
            return ApiError(500, str(error), code="engine_error")
        case _:
            return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def for_reader(error: Exception, hidden: Collection[str] | None, sent: object = None) -> ApiError:
    """`as_api_error` for a client that may not read the names in `hidden`; None: it may read everything.

    Args:
        sent: the request's JSON. A name that stands in the field that is refused is no news: it is treated as one that
            nobody has.

    What the server says of its own about a request (`ApiError`, a wrong shape, a closed field) may repeat the client's
    words, whether they are names or not: were it held back where they are, a list of words would tell which. So what
    names a part among these has a `public` text, or one of `CODES_OF_PARTS`.
    """
    said = as_api_error(error)
    if hidden is None or said.code == NO_MODEL:  # made of the names that the client may read, and of its own
        return said
    if said.public is not None:
        return _unsaid(said, said.public, sent)
    is_of_parts = isinstance(error, OF_PARTS) or said.code in CODES_OF_PARTS
    if is_of_parts or (not isinstance(error, OF_REQUESTS) and _names(said, hidden, sent)):
        return _unsaid(said, UNSAID.get(said.status_code, "The request cannot be served."), sent)
    return said


def _unsaid(said: ApiError, message: str, sent: object) -> ApiError:
    """Codes of parts tell that something is composed, and so does a field that the client has not sent."""
    code, param = said.code, said.param
    if code in CODES_OF_PARTS:
        is_sent = isinstance(sent, dict) and (param or "").partition(".")[0] in sent
        code, param = None, param if is_sent else None
    return ApiError(said.status_code, message, param=param, code=code, headers=said.headers)


def _names(said: ApiError, hidden: Collection[str], sent: object) -> bool:
    found = [name for name in hidden if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", said.detail)]
    field = (said.param or "").partition(".")[0]
    fields = cast("dict[str, object]", sent) if isinstance(sent, dict) else {}
    return any(not any(name in text for text in texts_of(fields.get(field))) for name in found)


def _from_http(error: HTTPException) -> ApiError:
    message = error.detail if error.detail != HTTPStatus(error.status_code).phrase else f"{error.detail}."
    return ApiError(error.status_code, message, headers=error.headers)


def _from_validation(error: RequestValidationError) -> ApiError:
    problems = error.errors()
    if problems[0]["loc"] == ("body",) and problems[0]["type"] != "value_error":
        return invalid("The body has to be a JSON object, sent with content-type application/json.", code="no_json")
    said_of: dict[str, list[str]] = {}
    lengths: dict[str, list[str]] = {}
    for problem in problems[:MAX_READ]:
        loc, missing = problem["loc"], problem["type"] == "missing"
        path = [*_path(loc[:-1] if missing else loc, error.body), *(loc[-1:] if missing else ())]
        field = ".".join(str(part)[:MAX_SHOWN] for part in path)
        said = problem["msg"].removeprefix("Value error, ")[:MAX_SHOWN]
        (lengths if problem["type"] == "too_long" else said_of).setdefault(field, []).append(said)
    said_of = {field: said for field, said in said_of.items() if not _inside(field, said_of) | _within(field, lengths)}
    said_of |= lengths
    told = [f"{field or 'body'}: {' or '.join(dict.fromkeys(said))}" for field, said in said_of.items()]
    message = sentences(told, len(told) + max(0, len(problems) - MAX_READ))
    return invalid(message, next(iter(said_of)) or None, "invalid_value")


def _path(loc: tuple[int | str, ...], body: Any) -> list[int | str]:
    """Where a problem lies in the body. Pydantic's path has names of union members in between, which are not there."""
    path: list[int | str] = []
    for part in loc[1:]:
        is_item = isinstance(body, list) and isinstance(part, int)
        if is_item or (isinstance(body, dict) and part in body):
            path.append(part)
            body = cast(Any, body)[part]
    return path


def _inside(field: str, others: Collection[str]) -> bool:
    """Whether another problem lies deeper in the same field: the branch of a union that the client meant."""
    return any(other.startswith(f"{field}.") for other in others)


def _within(field: str, lists: Collection[str]) -> bool:
    """Whether it belongs to a list whose only problem is its length in one branch of a union: that one was meant."""
    return any(f"{field}.".startswith(f"{one}.") for one in lists)


async def handle(request: Request, error: Exception) -> Response:
    state = request.scope["state"]
    if isinstance(error, NotAllowed):
        state["closed"] = error.opening
    answer = for_reader(error, state["service"].hidden, state.get("sent"))
    if answer.status_code >= 500 and answer.status_code != 503:
        log.error("request failed", exc_info=error)
    response = error_response(answer, request.url.path)
    # Starlette answers unexpected exceptions outside of the middleware that adds this header to all other answers
    response.headers["x-request-id"] = request.scope["state"]["request_id"]
    return response


HANDLERS: dict[int | type[Exception], Handler] = {
    HTTPException: handle,
    RequestValidationError: handle,
    CompositionError: handle,
    UnknownModel: handle,
    NotAllowed: handle,
    RequestTooLarge: handle,
    EngineError: handle,
    Exception: handle,
}
