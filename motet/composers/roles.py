"""The parts that every strategy's fields are made of: numbers with bounds, roles (a model and what it reads), and
schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from motet.composers.exits import Exit
from motet.composers.plan import Prompt
from motet.composers.schedule import Phase, Schedule, SchedulePoint

MAX_WEIGHT = 100.0  # far beyond any published use, and float32 sums of 100 · log-prob still resolve 1e-3
MAX_PARTS = 8  # members, traits or stacked strategies in one list
MAX_MESSAGES = 4096  # of a role's own conversation
MAX_NAME = 512  # characters of a model's name or a message's role
MAX_TOKENS = 1_000_000  # longer than any answer
MAX_POINTS = 64  # of a schedule

Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=0.01, le=MAX_WEIGHT, allow_inf_nan=False)]
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


@dataclass(frozen=True, slots=True)
class Voice:
    """A model, what it reads (None: the request's own prompt), what divides its logits, and where its forward is left
    early (None: at its end). Equal voices have equal distributions."""

    model: str
    prompt: Prompt | None = None
    temperature: float = 1.0
    exit: Exit | None = None


class Spec(BaseModel, frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True):
    """An object that a client writes: unknown fields and lossy conversions ("1" for 1) are errors."""


class RoleMessage(Spec, frozen=True):
    """One chat message of a role's own prompt."""

    role: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    """Who speaks, as the chat template names it."""
    content: str
    """What is said."""


class Reading(Spec, frozen=True):
    """What a stream reads instead of the request's prompt.

    `prompt` is text taken as it is; the empty text means the beginning-of-sequence token alone. `messages` are
    rendered with `template` (None: the model's own default), which applies to the request's own messages where
    neither is given. `last_tokens` keeps only the end of the rendered prompt.
    """

    prompt: str | None = None
    """Text read as it is; the empty text is the beginning of a sequence."""
    messages: Annotated[list[RoleMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    """A conversation, rendered with `template`."""
    template: Literal["chat", "plain"] | None = None
    """How messages are rendered; left out, the model's own default."""
    last_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Keep only so many tokens of the end."""
    temperature: Temperature = 1.0
    """Divides the logits of this stream, before anything is composed; sets of plausible tokens are read without it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("prompt and messages exclude each other")
        if self.prompt is not None and self.template is not None:
            raise ValueError("template renders messages, a prompt is read as it is: give one of them")
        return self

    def as_prompt(self, template: Literal["chat", "plain"] | None = None) -> Prompt | None:
        """The plan's form, None where nothing differs from the request's own prompt.

        Args:
            template: used for messages that name no template of their own.
        """
        messages = tuple((m.role, m.content) for m in self.messages) if self.messages is not None else None
        rendered = (self.template or template) if self.prompt is None else None
        prompt = Prompt(self.prompt, messages, rendered, self.last_tokens)
        return None if prompt == Prompt() else prompt


class Context(Reading, frozen=True):
    """A reading that must differ from the request's own prompt: a second context of the base model."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.prompt is None and self.messages is None and self.last_tokens is None:
            raise ValueError("needs one of prompt, messages, last_tokens")
        return self


class RoleObject(Reading, frozen=True):
    """A registered model and what it reads."""

    model: ModelName
    """A model of `GET /v1/models`."""

    @property
    def voice(self) -> Voice:
        return Voice(self.model, self.as_prompt(), self.temperature)


class BaseObject(Reading, frozen=True):
    """The base; its model may be left to the request's `model`."""

    model: ModelName | None = None
    """A model of `GET /v1/models`; left out, the request's."""


class TimedPoint(Spec, frozen=True):
    """What holds from one token of the answer on."""

    token: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    """How many tokens of the answer come before; the first point's is 0."""
    scale: Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
    """Multiplies the strength of the strategy: 0 is the base, 1 what the strategy says."""
    masks: bool | None = None
    """Whether the strategy's masks hold; left out, where the scale is not 0."""


class Timing(Spec, frozen=True):
    """When a strategy counts: the base's score moves by `scale` times what the strategy adds to it.

    Counted are the tokens of the answer, scored ones too, not those of the prompt. Of strategies that are no sums the
    strength is scaled: `alpha` of `generic`, `omega` of `discriminator`, the weights of the members beside the base of
    `mixture` and `sparse`, what each pair adds in `dynamic`, what is added at most in `budget`, what the adapters
    add in `adapters`, the small model's share of its tokens in `cascade`, at most 1.
    """

    warmup: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    """The base alone writes so many tokens first (ThinkLogit's warm-up). Excludes `points`."""
    points: Annotated[list[TimedPoint], Field(min_length=1, max_length=MAX_POINTS)] | None = Field(
        default=None, examples=[[{"token": 0, "scale": 1}, {"token": 64, "scale": 0}]]
    )
    """What holds from which token on, in order; the first point is at token 0."""
    linear: bool = False
    """Between two points the scale moves in a straight line, instead of all at once."""
    phase: Phase | None = None
    """The strategy counts in the thought alone, or in the answer behind it alone, and tokens are counted from there."""

    @model_validator(mode="after")
    def _one_order(self) -> Self:
        given = [name for name in ("warmup", "points") if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.phase):
            raise ValueError(
                "needs one of warmup, points, phase" if not given else "needs one of warmup, points, not both"
            )
        tokens = [point.token for point in self.points or ()]
        if tokens and tokens[0] != 0:
            raise ValueError(f"the first of points must be at token 0, got {tokens[0]}")
        if any(before >= after for before, after in pairwise(tokens)):
            raise ValueError(f"points must ascend, got tokens {tokens}")
        if self.linear and len(tokens) < 2:
            raise ValueError("linear needs two points at least")
        return self

    def as_schedule(self) -> Schedule:
        """The plan's form."""
        if self.warmup is not None:
            return Schedule((SchedulePoint(0, 0.0), SchedulePoint(self.warmup, 1.0)), phase=self.phase)
        points = tuple(SchedulePoint(point.token, point.scale, point.masks) for point in self.points or ())
        return Schedule(points or (SchedulePoint(0, 1.0),), self.linear, self.phase)


def named(value: object) -> object:
    """A plain string is short for {"model": the string}."""
    return {"model": value} if isinstance(value, str) else value


def listed(value: object) -> object:
    """A single value as a list of one, for fields that allow both."""
    return cast("object", value) if isinstance(value, list) else [value]


Role = Annotated[RoleObject, BeforeValidator(named, json_schema_input_type=RoleObject | str)]
Base = Annotated[BaseObject, BeforeValidator(named, json_schema_input_type=BaseObject | str)]
Roles = Annotated[
    list[Role],
    Field(min_length=1, max_length=MAX_PARTS),
    BeforeValidator(listed, json_schema_input_type=RoleObject | str | list[RoleObject | str]),
]


def field_names(spec: type[BaseModel]) -> dict[str, str]:
    """Attribute → the name that clients write."""
    return {name: info.alias or name for name, info in spec.model_fields.items()}


def named_models(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, model name) of every role inside a spec, in the order of its fields."""
    if isinstance(value, RoleObject | BaseObject):
        if value.model is not None:
            yield path, value.model
    elif isinstance(value, Spec):
        for attribute, name in field_names(type(value)).items():
            yield from named_models(getattr(value, attribute), f"{path}.{name}")
    elif isinstance(value, list):
        items = cast("list[object]", value)
        for i, item in enumerate(items):
            alone = len(items) == 1 and isinstance(item, RoleObject)  # may have been written without a list
            yield from named_models(item, path if alone else f"{path}.{i}")
