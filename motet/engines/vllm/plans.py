"""Which plans the composite runs."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from motet.composers.plan import DiscriminatorRule, Plan, RoutedRule


def unsupported(plan: Plan, members: Collection[str]) -> str | None:
    """Why the plan cannot run over these members, None if it can."""
    if isinstance(plan.rule, RoutedRule):
        return "rule 'Routed' needs a learned gate, which no loaded model has"
    if isinstance(plan.rule, DiscriminatorRule):
        return (
            "rule 'Discriminator' keeps sums over all tokens so far, which vLLM's workers lose with a preempted "
            "request; the embedded engine runs it"
        )
    for stream in plan.streams:
        if stream.model not in members:
            near = difflib.get_close_matches(stream.model, members, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"model {stream.model!r} is not loaded{hint}"
    return None
