"""What Motet adds to an answer: what was composed, and what each member did to each token."""

from typing import Any, Literal, NotRequired, TypedDict, cast

__all__ = ["Alternative", "Composed", "StreamUse", "Token", "Top", "TracedToken", "composed", "traced"]


class StreamUse(TypedDict):
    """A model of the composition."""

    role: str
    """The model's part in the composition."""
    model: str
    """The model that ran."""
    weight: float
    """The factor of its log-probs."""
    prompt_tokens: int
    """Tokens that it read."""


class Composed(TypedDict):
    """What was composed, and what it took."""

    strategy: str
    """The strategy of the composition; `plain` where one model answered alone."""
    drawn_by_member: NotRequired[bool]
    """True where each token was drawn from one member of a mixture, the member drawn by its share."""
    weight_sum: float
    """The sum of the weights; acts as an inverse temperature."""
    kv_bytes: int
    """Memory for keys and values that was reserved."""
    streams: list[StreamUse]
    """Every model with what it read, the base first."""


class Token(TypedDict):
    """A token and its log-prob."""

    token: str
    token_id: int
    logprob: float


class Alternative(Token):
    """A token that could have been written, with each member's log-prob of it, by role."""

    members: dict[str, float]


class Top(TypedDict):
    """The likeliest tokens before and after the composition."""

    base: list[Token]
    composed: list[Token]


class TracedToken(Token):
    """What each member did to one token of the answer."""

    members: dict[str, float]
    """Log-prob of the token under each member, by role."""
    kl: float
    """KL(composed ‖ base) in nats."""
    base_rank: int
    """The token's rank under the base; 0 is the first."""
    shift: Literal["unshifted", "marginal", "shifted"]
    """The same in URIAL's three classes."""
    argmax_moved: bool
    """Whether the likeliest token is another than the base's."""
    alpha: NotRequired[float | list[float]]
    """The strength that `dynamic` and `budget` have solved for; of other strategies, see the server's documentation."""
    head: NotRequired[float]
    """What the base's head says, where `routed` and `adaptive_temperature` ask it."""
    layer: NotRequired[int | list[int]]
    """The early layer that `layer_contrast` has chosen for the token."""
    top: Top
    """As many as `TraceOptions.top` asks for."""
    ranks: NotRequired[dict[str, int]]
    """Each member's rank of the token; this and what follows with `TraceOptions.members`."""
    push: NotRequired[dict[str, float] | None]
    """What each member adds to the token's score, in nats; None where the score is no sum."""
    alternatives: NotRequired[list[Alternative]]
    """Other tokens with what each member says of them."""


def composed(answer: object) -> Composed:
    """What was composed for an answer of the openai SDK (a chat completion, a completion, or the last chunk of a stream
    with `include_usage`).

    Raises:
        ValueError: it is not Motet's.
    """
    added = _added(answer)
    if added is None:
        raise ValueError(f"no `motet` in this {type(answer).__name__}: not a whole answer of Motet's")
    return cast(Composed, added)


def traced(choice: object) -> list[TracedToken]:
    """The trace of one of `answer.choices`, whole or of a chunk, token by token.

    Raises:
        ValueError: none was asked for: `compose(…, trace=True)`.
    """
    trace = (_added(choice) or {}).get("trace")
    if trace is None:
        raise ValueError(f"no trace in this {type(choice).__name__}: ask for one with compose(…, trace=True)")
    return cast("list[TracedToken]", trace)


def _added(answer: object) -> dict[str, Any] | None:
    return getattr(answer, "motet", None)
