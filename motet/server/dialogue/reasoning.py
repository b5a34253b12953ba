"""How long an answer may think before it answers: what a request asks, as template variables and a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from motet.composers.plan import Plan
from motet.engines.base import ThoughtPhase
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.conversation import Dialect
from motet.server.http.errors import invalid

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
# tokens of thought, as the OpenAI-compatible endpoint of Gemini has them
BUDGETS: Mapping[Effort, int | None] = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": None,
}
NAME_TAGS = "The operator can name what stands around them: models.NAME.think_tags in the operator's file."
SHARE = 0.75  # of `max_tokens` that a bounded thought takes at most, so that an answer follows


@dataclass(frozen=True)
class Thinking:
    """What a request says of the thought."""

    effort: Effort | None = None
    budget: int | None = None

    def variables(self, plan: Plan, members: Mapping[str, LoadedModel], given: Mapping[str, Any]) -> dict[str, Any]:
        """The template variables of the effort, where templates know them; what the client has given itself stays."""
        known = [name for name in ("reasoning_effort", "enable_thinking") if _is_known(name, plan, members)]
        values: dict[str, Any] = {"reasoning_effort": self.effort, "enable_thinking": self.effort != "none"}
        return {name: values[name] for name in known} | dict(given)

    def tokens(self, plan: Plan, members: Mapping[str, LoadedModel], dialect: Dialect) -> int | None:
        """The budget; None: there is none.

        Raises:
            ApiError: 400, there are no thoughts to bound.
        """
        if self.budget is not None:
            asked, tokens = "thinking_token_budget", self.budget
        elif self.effort is None or self.effort == "none":
            return None if self.effort is None else 0
        elif _is_known("reasoning_effort", plan, members):
            return None
        else:
            asked, tokens = "reasoning_effort", BUDGETS[self.effort]
        if dialect.tags is None:
            raise invalid(
                f"{asked}: no member of this composition writes thoughts. {NAME_TAGS}",
                asked,
                "thinking_unsupported",
            )
        return tokens


def _is_known(variable: str, plan: Plan, members: Mapping[str, LoadedModel]) -> bool:
    read = (members[stream.model] for stream in plan.streams)
    return any(member.template == "chat" and member.tokenizer.template.knows(variable) for member in read)


def phase_of(dialect: Dialect, base: LoadedModel, *, opened: bool | None, budget: int | None) -> ThoughtPhase | None:
    """The thought before an answer; None where it cannot think: the prompt has ended the thought, or nobody has any.

    Args:
        base: whose tokens spell the answer.
        opened: see `answer_form.opens_thought`.
    """
    if dialect.tags is None or opened is False:
        return None
    begin = () if opened else _ids(dialect.tags.begin, base)
    return ThoughtPhase(begin, _ids(dialect.tags.end, base), dialect.tags.end, budget)


def within(thought: ThoughtPhase, max_tokens: int) -> ThoughtPhase:
    """The thought with a budget that leaves room for an answer."""
    room = max(0, int(SHARE * max_tokens) - len(thought.begin) - len(thought.end))
    return thought if thought.budget is None else replace(thought, budget=min(thought.budget, room))


def _ids(text: str, base: LoadedModel) -> tuple[int, ...]:
    """The token of a text, or its tokens where that one is not among those of all members."""
    own = base.tokenizer.added_id(text)
    return (own,) if own is not None and own < base.info.vocab_size else tuple(base.tokenizer.encode(text))
