"""What the ids of a composition's base are to a member of other tokens.

A base token's counterpart is the member's token that stands for the same bytes; each has one at most. Tokens that end
an answer, and those that begin a text, are counterparts by their role where they are spelled otherwise.

Let C be the base's tokens that have a counterpart, `p_0` the base's distribution and `q` the member's, both at
temperature 1. In the composition the member's distribution over the base's tokens v is

    q'(v) = p_0(C) · q(v) / q(C)  for v in C,    q'(v) = p_0(v)  elsewhere

so it says of the tokens that it does not have what the base says, and of the others how they share the rest. Whatever
the rule, such a member moves nothing there: a pair of experts cancels, in a mixture the base's share stays, a weighted
sum has there what it has where its members agree, and no token gains mass that no member gave it. Where all tokens have
a counterpart q' is q over the base's tokens. The member reads what the composition writes as counterparts, too; a token
without one as its own tokenizer spells it, in one token or several.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

NONE = -1  # in the place of a counterpart


class Readable(Protocol):
    """As `models.pieces.Piece`."""

    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def spelling(self) -> str: ...


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A map is equal to itself alone.

    Attributes:
        ids: of each of the base's ids the member's, or `NONE`.
        spell: what the member reads in the place of a token without a counterpart, at least one id.
        end: the base's id that also stands for the member's `own_ends`, ends of answers which the base does not have.
        is_by_role: whether any counterpart is one by its role alone.
    """

    ids: tuple[int, ...]
    spell: Callable[[int], Sequence[int]]
    end: int = NONE
    own_ends: tuple[int, ...] = ()
    is_by_role: bool = False
    _spelled: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]], repr=False)

    @cached_property
    def num_shared(self) -> int:
        """How many of the base's ids have a counterpart."""
        return sum(token != NONE for token in self.ids)

    @property
    def has_all(self) -> bool:
        """Whether every token of the base has a counterpart, so that the member reads one id for each."""
        return self.num_shared == len(self.ids)

    @property
    def is_exact(self) -> bool:
        """Whether the member knows all of the base's tokens as the very same tokens."""
        return self.has_all and not self.is_by_role

    @cached_property
    def back(self) -> Mapping[int, int]:
        """The base's ids of the member's, where there are any."""
        found = {token: place for place, token in enumerate(self.ids) if token != NONE}
        return found | dict.fromkeys(self.own_ends, self.end)

    def read(self, tokens: Iterable[int]) -> list[int]:
        """What the member reads where the base reads `tokens`."""
        found: list[int] = []
        for token in tokens:
            if (own := self.ids[token]) != NONE:
                found.append(own)
            else:
                if token not in self._spelled:
                    self._spelled[token] = tuple(self.spell(token))
                found += self._spelled[token]
        return found


@dataclass(frozen=True, slots=True)
class Tokens:
    """One side of a map: what its ids stand for, those that end its answers, the one that it answers with first, and
    what its texts begin with."""

    pieces: Mapping[int, Readable]
    ends: Sequence[int] = ()
    start: int | None = None


def token_map(base: Tokens, member: Tokens, width: int, spell: Callable[[int], Sequence[int]]) -> TokenMap:
    """The map between two vocabularies, the base's of `width` ids."""
    found = _counterparts(base.pieces, member.pieces)
    taken = set(found.values())
    is_by_role = False
    if None not in (base.start, member.start) and base.start not in found and member.start not in taken:
        found[base.start or 0] = member.start or 0
        is_by_role = True
    own_ends = tuple(end for end in member.ends if end not in taken and end in member.pieces)
    end = next((end for end in base.ends if end not in found), base.ends[0] if base.ends else NONE)
    if end == NONE or not own_ends:
        end, own_ends = NONE, ()
    elif end not in found:
        found[end], *_ = own_ends
    ids = tuple(found.get(token, NONE) for token in range(width))
    return TokenMap(ids, spell, end, own_ends, is_by_role or bool(own_ends))


def _counterparts(base: Mapping[int, Readable], member: Mapping[int, Readable]) -> dict[int, int]:
    """The nearest first: the same token of the same spelling, then the same kind of token, then the same bytes; at last
    tokens that one tokenizer calls special, and the other only sets apart."""
    found: dict[int, int] = {}
    wanted, left = dict(base), dict(member)
    for key in (_itself, _by_kind, _by_bytes, _set_apart):
        free: dict[Hashable, int] = {}
        for token, piece in left.items():
            free.setdefault(key(piece), token)
        new = {token: own for token, piece in wanted.items() if (own := free.pop(key(piece), None)) is not None}
        for token, own in new.items():
            del wanted[token], left[own]
        found |= new
    return found


def _itself(piece: Readable) -> Hashable:
    return piece.kind, piece.data, piece.spelling


def _by_kind(piece: Readable) -> Hashable:
    return _family(piece), piece.data, piece.kind == "byte"


def _by_bytes(piece: Readable) -> Hashable:
    return _family(piece), piece.data


def _set_apart(piece: Readable) -> Hashable:
    return piece.kind in ("added", "special"), piece.data


def _family(piece: Readable) -> str:
    """Text that looks like a special token is none."""
    return "special" if piece.kind == "special" else "text"
