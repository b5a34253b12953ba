"""Rules: a rule vector on the base, no second model; the baseline that every learned proxy must beat."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.errors import at_most, refusal, show
from motet.composers.plan import RuleVector
from motet.composers.roles import Spec, Weight
from motet.composers.shift import Shift
from motet.composers.strategies.strategy import Request, Strategy

_ID = "id:"
_MAX_OFFSETS = 1024
Written = Annotated[str, Field(max_length=256)]  # longer than any token
_MAX_DIGITS = 9  # no vocabulary is longer, and an int64 index holds it


class EosRamp(Spec, frozen=True):
    """The end of the answer becomes more likely: from 0 up to `weight` nats over the first `tokens` tokens."""

    tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    """Length of the ramp."""
    weight: Weight
    """What the end has gained at the end of the ramp, in nats."""


class RuleAdapter(Strategy, frozen=True):
    """`z = L_base + r`, with r the sum of a ramp on the end of sequence, `−repetition` on every token generated
    before, and offsets of single tokens

    Instruction Following without Instruction Tuning (Hewitt et al. 2024, arXiv:2409.14254). `token_offsets` maps a
    text that is exactly one token, or an id written `id:123`, to an offset in nats.
    """

    strategy: Literal["rules"] = "rules"
    eos_ramp: EosRamp | None = None
    """Makes the end of the answer more likely, token by token."""
    repetition: Weight = 0.0
    """Taken off tokens that the answer holds already, in nats."""
    token_offsets: Annotated[
        dict[Written, Weight], Field(default_factory=dict, max_length=_MAX_OFFSETS), at_most(_MAX_OFFSETS)
    ]
    """Offset in nats by token: a text that is exactly one token, or `id:123`."""

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if not self.model_fields_set & {"eos_ramp", "repetition", "token_offsets"}:
            raise ValueError("needs one of eos_ramp, repetition, token_offsets")
        return self

    def shift(self, request: Request) -> Shift:
        ramp = self.eos_ramp
        return Shift(
            rules=RuleVector(
                eos_ramp_tokens=ramp.tokens if ramp else 0,
                eos_ramp_weight=ramp.weight if ramp else 0.0,
                repetition=self.repetition,
                offsets=tuple(self._offsets(request).items()),
            )
        )

    def _offsets(self, request: Request) -> dict[int, float]:
        offsets: dict[int, float] = {}
        problems: list[str] = []
        for key, offset in self.token_offsets.items():
            token = _token(key, request)
            if isinstance(token, str):
                problems.append(token)
            else:
                offsets[token] = offsets.get(token, 0.0) + offset
        if problems:
            path = f"{request.path}.token_offsets"
            raise refusal([(path, problem) for problem in problems], len(problems))
        return offsets


def _token(key: str, request: Request) -> int | str:
    """The id that a key means, or what is wrong with it."""
    digits = key.removeprefix(_ID)
    if not (key.startswith(_ID) and digits.isascii() and digits.isdigit()):
        digits = request.token_id(key)
        if digits is None:
            return f"{show(key)} is not exactly one token; an id is written 'id:123'"
    size = request.vocab_size
    if len(str(digits)) > _MAX_DIGITS or (size is not None and int(digits) >= size):
        allowed = f"; allowed: 0 to {size - 1}" if size is not None else ""
        return f"{show(key)} is not in the vocabulary{allowed}"
    return int(digits)
