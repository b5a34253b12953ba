"""Rows of members with other tokens, over the tokens of their bases (see `composers.token_map`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from motet.composers.token_map import NONE, TokenMap
from motet.engines.torch.choice import Choice
from motet.engines.torch.model import Member
from motet.engines.torch.work import Work

Key = tuple[Choice, int]  # a choice, and the number of a stream

_indices: WeakKeyDictionary[TokenMap, Tensor] = WeakKeyDictionary()


@dataclass(slots=True)
class Rows:
    """Rows of one member under one map: which of the member's own logits they are, the base's beside them, and where
    the first of each stream is among them."""

    own: list[int] = field(default_factory=list[int])
    base: list[tuple[Member, int]] = field(default_factory=list[tuple[Member, int]])
    first: dict[Key, int] = field(default_factory=dict[Key, int])


def translated(
    logits: Mapping[Member, Tensor], first_rows: Mapping[Key, int], work: Sequence[Work]
) -> list[tuple[Tensor, Mapping[Key, int]]]:
    """The rows of the streams that have other tokens than their bases: matrices of raw logits over the width of this
    work, and where the first row of each stream is in its matrix.

    Args:
        logits: (n, V) of each member, over its own tokens.
        first_rows: where the first row of each stream is in them.
    """
    found: dict[tuple[Member, TokenMap], Rows] = {}
    for item in work:
        base = item.choice.streams[0].member
        for k, stream in enumerate(item.choice.streams):
            if stream.tokens is not None:
                rows = found.setdefault((stream.member, stream.tokens), Rows())
                rows.first[item.choice, k] = len(rows.own)
                start, beside = first_rows[item.choice, k], first_rows[item.choice, 0]
                rows.own += range(start, start + item.positions)
                rows.base += [(base, row) for row in range(beside, beside + item.positions)]
    width = work[0].choice.vocab_size
    return [(_over_base(logits, *key, rows, width), rows.first) for key, rows in found.items()]


def _over_base(logits: Mapping[Member, Tensor], member: Member, tokens: TokenMap, rows: Rows, width: int) -> Tensor:
    own = logits[member][rows.own]
    ids = _index(tokens, own.device)[:width]
    beside = None
    if not tokens.has_all:
        beside = torch.stack([logits[base][row, :width].to(own.device) for base, row in rows.base])
    return over_base(own, ids, beside, None if tokens.end >= width else (tokens.end, tokens.own_ends))


def over_base(
    own: Tensor, ids: Tensor, base: Tensor | None = None, ends: tuple[int, Sequence[int]] | None = None
) -> Tensor:
    """A member's raw logits (n, W) over the base's W tokens.

    Args:
        own: (n, V) over the member's tokens.
        ids: (W,) int64, of each of the base's tokens the member's, or `NONE`.
        base: (n, W) raw logits of the base; needed where a token has no counterpart. The result is then relative to
            them, in float32 or wider; else it holds the member's own values in the member's own dtype.
        ends: a token of the base, and those of the member that it stands for beside its counterpart.
    """
    found = own[:, ids.clamp(min=0)]
    if ends is not None and ends[1]:
        merged = {*ends[1], *(token for token in (int(ids[ends[0]]),) if token != NONE)}
        found[:, ends[0]] = own[:, sorted(merged)].logsumexp(-1)
    if base is None:
        return found
    dtype = torch.promote_types(torch.promote_types(own.dtype, base.dtype), torch.float32)
    found, base, lacking = found.to(dtype), base.to(dtype), ids == NONE
    shared = [scores.masked_fill(lacking, -math.inf).logsumexp(-1, keepdim=True) for scores in (found, base)]
    return torch.where(lacking, base, found - shared[0] + shared[1])


def _index(tokens: TokenMap, device: torch.device) -> Tensor:
    known = _indices.get(tokens)
    if known is None or known.device != device:
        known = torch.tensor(tokens.ids, dtype=torch.int64, device=device) if known is None else known.to(device)
        _indices[tokens] = known
    return known
