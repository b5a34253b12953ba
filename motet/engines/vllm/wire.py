"""What a request tells the workers about its rows, as plain data that travels inside vLLM's `extra_args`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from motet.composers.plan import (
    BudgetRule,
    DiscriminatorRule,
    DynamicRule,
    LinearRule,
    MixtureRule,
    Plan,
    Prompt,
    ReluRule,
    RoutedRule,
    RuleVector,
    Stream,
    TokenSet,
)
from motet.engines.base import SamplingParams

KEY = "motet"  # in `extra_args`


@dataclass(frozen=True, slots=True)
class Probe:
    """The distributions at the request's own tokens are reported, from the token at index `start` on (≥ 1).

    `top` alternatives beside each token, and what each voice did to it with `trace_top` alternatives, if any.
    """

    start: int
    top: int
    trace_top: int | None


@dataclass(frozen=True, slots=True)
class Link:
    """One context of a choice whose streams read several: the requests of a `group` run in lockstep.

    Of `size` contexts this is number `view`; `views[k]` is the number of the one that stream k reads.
    """

    group: str
    view: int
    size: int
    views: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One vLLM request: a choice, or one context of it.

    `ends` are the tokens that a rule's ramp raises and that `min_tokens` bans. Tokens from index `written_from` on
    count for rules as written by the composition, those from `drawn_from` on are drawn under `draw`, seeded by `key`;
    without it drawing is vLLM's; `grammar` is the text of its grammar, which stands in `draw` where nothing travels.
    `forced` tokens are taken instead of drawn ones, one per step.
    """

    plan: Plan
    ends: tuple[int, ...] = ()
    written_from: int = 0
    drawn_from: int = 0
    draw: SamplingParams | None = None
    key: str = ""
    probe: Probe | None = None
    link: Link | None = None
    forced: tuple[int, ...] = ()
    grammar: str = ""


CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        BudgetRule,
        DiscriminatorRule,
        DynamicRule,
        LinearRule,
        Link,
        MixtureRule,
        Plan,
        Probe,
        Prompt,
        ReluRule,
        RoutedRule,
        RowSpec,
        RuleVector,
        SamplingParams,
        Stream,
        TokenSet,
    )
}


def plain(value: object) -> Any:
    """Frozen data → numbers, strings, lists and dictionaries with a `type`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {
            field.name: plain(getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, tuple):
        return [plain(item) for item in cast("Sequence[object]", value)]
    return value


def rebuilt(value: Any) -> Any:
    """The inverse of `plain`.

    Raises:
        ValueError, TypeError, KeyError: the data is not what `plain` writes.
    """
    if isinstance(value, dict):
        entries = dict(cast("dict[str, Any]", value))
        cls = CLASSES[entries.pop("type")]
        return cls(**{name: rebuilt(entry) for name, entry in entries.items()})
    if isinstance(value, list | tuple):
        return tuple(rebuilt(item) for item in cast("Sequence[Any]", value))
    return value


def read_spec(value: Any) -> RowSpec:
    """The row of a request, from `extra_args[KEY]`.

    Raises:
        ValueError: it is malformed.
    """
    try:
        spec = rebuilt(value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"extra_args[{KEY!r}] is malformed: {error}") from error
    if not isinstance(spec, RowSpec):
        raise ValueError(f"extra_args[{KEY!r}] is no row")
    return spec
