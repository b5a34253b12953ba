"""In which words a composition calls tools and thinks: those of one of its members, which lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from motet.composers.plan import Plan
from motet.models.thoughts import ThinkTags
from motet.models.tool_formats import ToolFormat
from motet.operator.loaded import LoadedModel


@dataclass(frozen=True)
class Dialect:
    """The format of calls, with whether one turn holds one call at most, and the tags of thoughts; None where no member
    that leads has any. `thinker` is the stream whose tags they are."""

    calls: ToolFormat | None = None
    is_single: bool = False
    tags: ThinkTags | None = None
    thinker: int = 0


def dialect_of(plan: Plan, members: Mapping[str, LoadedModel]) -> Dialect:
    """The base's words, as the operator or its own template has them; where it has none, those of the first member that
    the composition is drawn to."""
    leaders = [(k, members[stream.model]) for k, stream in enumerate(plan.streams) if k == 0 or stream.weight > 0]
    caller = next((member for _, member in leaders if member.tool_format), None)
    thinker, tags = next(((k, member.think_tags) for k, member in leaders if member.think_tags), (0, None))
    if caller is None:
        return Dialect(tags=tags, thinker=thinker)
    return Dialect(caller.tool_format, caller.calls_once, tags, thinker)
