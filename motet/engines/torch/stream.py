"""One stream of a choice: what it reads, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass

from motet.engines.torch.cache import Slot
from motet.engines.torch.model import Member


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream of a choice: its member, its own context, and its slot once admitted.

    `judged`: how many tokens at the end of its context the plan's rule must know the log-probs of. The first
    `num_virtual` tokens of the context are a soft prompt's. `adapter`: the number of the one with which the member
    computes it, 0 for none.
    """

    member: Member
    context: list[int]
    slot: Slot | None = None
    judged: int = 0
    num_virtual: int = 0
    adapter: int = 0

    @property
    def prompt(self) -> list[int]:
        """The context without what stands for a soft prompt."""
        return self.context[self.num_virtual :]

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return len(self.slot.tokens) if self.slot else 0

    def missing(self, position: int) -> int:
        """Tokens still to be computed before the one that the distribution of this position stands behind, which is fed
        together with all streams: those of the context, and shared ones that a preempted stream has lost."""
        return max(0, len(self.context) + position - 1 - self.computed)

    @property
    def reusable(self) -> int:
        """Tokens that another stream's slot may spare this one. A judged token is computed whatever is cached: keys and
        values do not tell its log-prob."""
        return len(self.context) - 1 - self.judged

    def judged_rows(self, count: int) -> int:
        """How many of the next `count` tokens yield the distribution of a judged one."""
        end = min(self.computed + count, len(self.context) - 1)
        return max(0, end - max(self.computed, self.reusable))
