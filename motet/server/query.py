"""What a client asks, as data: each route writes its body down in one of these, and nothing is computed yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request

from motet.server.adapters.adapter import Adapter
from motet.server.dialogue.conversation import Dialect, Turn
from motet.server.dialogue.reasoning import Thinking
from motet.server.dialogue.tools import Offer
from motet.server.http.errors import invalid
from motet.server.http.unsupported import check_extras
from motet.server.shapes.requests import MAX_STOPS, NO_LIMIT, Body, Message, SamplingFields, Target, TraceOptions


@dataclass(frozen=True)
class Display:
    """How a request's tokens are shown. `logprobs`, `prompt_logprobs`, `trace`: None is off, else how many
    alternatives beside the token itself."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    trace: int | None = None
    trace_members: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False


def display(body: SamplingFields, *, logprobs: int | None, echo: bool = False, max_stops: int = MAX_STOPS) -> Display:
    """Raises ApiError (400): too many stop strings, prompt log-probs in a stream."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > max_stops:
        raise invalid(f"'stop' has {len(stops)} strings, at most {max_stops} are allowed.", "stop")
    if body.stream and body.prompt_logprobs is not None:
        raise invalid("'prompt_logprobs' cannot be streamed.", "prompt_logprobs", "unsupported_parameter")
    if body.logprob_token_ids:
        logprobs = _named(body, logprobs)
    return Display(
        stops=tuple(stops),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        min_tokens=body.min_tokens or 0,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        echo=echo,
        trace=trace_top(body.trace),
        trace_members=tells_members(body.trace),
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def check_known(body: Body, request: Request) -> None:
    """Looks at the fields that are not known, if there are any. Raises ApiError (400) as `check_extras` does."""
    if extras := list(body.extras()):
        check_extras(extras, body, request)


def _named(body: SamplingFields, logprobs: int | None) -> int:
    """How many log-probs the named tokens are. Raises ApiError (400) where others are asked for, too, or none."""
    own = "logprob_token_ids"
    if logprobs is None:
        raise invalid(f"{own!r} needs 'logprobs'.", own)
    other = "prompt_logprobs" if body.prompt_logprobs is not None else "top_logprobs" if logprobs else None
    if other is not None or getattr(body, "echo", None):
        raise invalid(f"{own!r} excludes {other or 'echo'!r}.", own)
    return len(set(body.logprob_token_ids or ()))


def trace_top(trace: bool | TraceOptions | None) -> int | None:
    """How many alternatives a trace holds per token; None: no trace."""
    return trace.top if isinstance(trace, TraceOptions) else 0 if trace else None


def tells_members(trace: bool | TraceOptions | None) -> bool:
    """Whether a trace tells what each member says of the token and of its alternatives."""
    return isinstance(trace, TraceOptions) and trace.members


def limit(max_tokens: int | None) -> int | None:
    """`Query.max_tokens` of what a client sent."""
    return None if max_tokens == NO_LIMIT else max_tokens


def salt_of(request: Request, own: str | None) -> str:
    """What keeps the prefixes of a request apart from those of other keys, and of other salts of the same key."""
    key = request.scope["state"].get("key")
    return f"{key or ''}:{own or ''}" if key or own else ""


@dataclass(frozen=True)
class RequestPrompt:
    """What the client sent: exactly one of `text`, `messages` (as templates read them) and `tokens`. `tools` are those
    that the model may call; `dialect` is the composition's.

    `add_special_tokens` None is the default of each form: on for text, off for a rendered chat (its template writes
    them). `truncate` keeps the last tokens (−1: as many as the model can read).
    """

    text: str | None = None
    messages: tuple[Turn, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    dialect: Dialect = field(default_factory=Dialect)
    tokens: tuple[int, ...] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    truncate: int | None = None
    param: str = field(init=False)  # the request's field that it is

    def __post_init__(self) -> None:
        object.__setattr__(self, "param", "prompt" if self.messages is None else "messages")


def prompt_of(given: str | list[int] | None, messages: Sequence[Message] | None) -> RequestPrompt:
    """Raises ApiError (400): both a prompt and messages, or neither."""
    if (given is None) == (messages is None):
        raise invalid("Give either 'prompt' or 'messages'.", "prompt")
    match given:
        case None:
            return RequestPrompt(messages=tuple(message.turn() for message in messages or []))
        case str(text):
            return RequestPrompt(text=text)
        case tokens:
            return RequestPrompt(tokens=tuple(tokens))


@dataclass(frozen=True)
class Query:
    """Prompts to be answered, each by every target and `fields.n` times.

    The jobs are those of the first target in the order of the prompts, then those of the next. `max_tokens` None is
    what fits. With `labels`, one or None per target, the targets are the candidates of a comparison. `adapter` writes
    the answer in another API's shape; None: chat completions' and completions' own.

    Attributes:
        n: answers to each prompt by each target.
        tells_tokens: whether anything is told beside the answers' own text: ids, log-probs, the prompt once more.
    """

    request_id: str
    form: Literal["chat", "completion"]
    fields: SamplingFields
    targets: tuple[Target, ...]
    prompts: tuple[RequestPrompt, ...]
    display: Display
    max_tokens: int | None
    score_prompt: bool = False
    offer: Offer = field(default_factory=Offer)
    thinking: Thinking = field(default_factory=Thinking)
    labels: tuple[str | None, ...] | None = None
    adapter: Adapter | None = None
    cache_salt: str = ""
    n: int = field(init=False)
    num_choices: int = field(init=False)
    tells_tokens: bool = field(init=False)

    def __post_init__(self) -> None:
        n, show = self.fields.n or 1, self.display
        counts = (show.logprobs, show.prompt_logprobs, show.trace)
        tells = show.echo or show.token_ids or any(count is not None for count in counts)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "num_choices", len(self.targets) * len(self.prompts) * n)
        object.__setattr__(self, "tells_tokens", tells)


@dataclass(frozen=True)
class ScoreQuery:
    """Continuations (texts or token ids) of one prompt, to be scored under one target."""

    request_id: str
    target: Target
    prompt: RequestPrompt
    continuations: tuple[str | list[int], ...]
    trace: int | None = None  # alternatives per token; None: no trace
    trace_members: bool = False
    cache_salt: str = ""

    @property
    def num_choices(self) -> int:
        return len(self.continuations)
