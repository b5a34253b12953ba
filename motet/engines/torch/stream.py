"""One stream of a choice: what it reads, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from motet.composers.token_map import TokenMap
from motet.engines.torch.cache import Slot
from motet.engines.torch.model import Member


class Translation:
    """What a choice writes, in the ids of a member with other tokens.

    Args:
        tokens: what the base's ids are to the member.
        shared: the choice's tokens, to which more are appended.
    """

    def __init__(self, tokens: TokenMap, shared: Sequence[int]) -> None:
        self._tokens = tokens
        self._shared = shared
        self._ids: list[int] = []
        self._lengths = [0]  # of the member's ids, by how many of the shared tokens they are

    def _follow(self) -> None:
        for token in self._shared[len(self._lengths) - 1 :]:
            self._ids += self._tokens.read((token,))
            self._lengths.append(len(self._ids))

    def length(self, position: int) -> int:
        """How many of the member's ids the tokens before a position are; guesses are one each (`drafts_of`)."""
        self._follow()
        return self._lengths[min(position, len(self._shared))] + max(0, position - len(self._shared))

    def ids(self, guesses: Sequence[int] = ()) -> list[int]:
        """The member's ids of what is written, and of guesses behind it."""
        self._follow()
        return self._ids + self._tokens.read(guesses) if guesses else self._ids


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream of a choice: its member, its own context, and its slot once admitted.

    `judged`: how many tokens at the end of its context the plan's rule must know the log-probs of. The first
    `num_virtual` tokens of the context are a soft prompt's. `adapter`: the number of the one with which the member
    computes it, 0 for none. `is_respelled`: it may read several tokens in the place of one.
    """

    member: Member
    context: list[int]
    slot: Slot | None = None
    judged: int = 0
    num_virtual: int = 0
    adapter: int = 0
    tokens: TokenMap | None = None
    translation: Translation | None = None
    is_respelled: bool = False

    @property
    def prompt(self) -> list[int]:
        """The context without what stands for a soft prompt."""
        return self.context[self.num_virtual :]

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return len(self.slot.tokens) if self.slot else 0

    def length(self, position: int) -> int:
        """Tokens that the stream reads before a position."""
        return len(self.context) + (position if self.translation is None else self.translation.length(position))

    def missing(self, position: int) -> int:
        """Tokens still to be computed before the one that the distribution of this position stands behind, which is fed
        together with all streams: those of the context, and shared ones that a preempted stream has lost."""
        return max(0, self.length(position) - 1 - self.computed)

    @property
    def reusable(self) -> int:
        """Tokens that another stream's slot may spare this one. A judged token is computed whatever is cached: keys and
        values do not tell its log-prob."""
        return len(self.context) - 1 - self.judged

    def judged_rows(self, count: int) -> int:
        """How many of the next `count` tokens yield the distribution of a judged one."""
        end = min(self.computed + count, len(self.context) - 1)
        return max(0, end - max(self.computed, self.reusable))
