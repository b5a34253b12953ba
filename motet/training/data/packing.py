"""Which documents, or pieces of them, stand in which row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens start ≤ t < stop of a document; `stop` None: to its end."""

    index: int
    start: int = 0
    stop: int | None = None


Row = tuple[Piece, ...]


def one_per_row(count: int) -> list[Row]:
    """Document i in row i."""
    return [(Piece(index),) for index in range(count)]


def pack_fit(lengths: NDArray[np.int64], order: Sequence[int], capacity: int) -> list[Row]:
    """Best-fit decreasing: the longest document first, each into the fullest row that still has room for it.

    Never more than 11/9 of the fewest possible rows, and one (Johnson, 1974).

    Args:
        lengths: (n,) tokens of each document, none above `capacity`.
        order: which of several documents of one length comes first.
        capacity: tokens of a row.
    """
    rows: list[list[Piece]] = []
    with_room: dict[int, list[int]] = {}  # free tokens → rows
    free: list[int] = []  # the keys of `with_room`, sorted
    for index in sorted(order, key=lambda index: -int(lengths[index])):
        length = int(lengths[index])
        place = bisect_left(free, length)
        if place < len(free):
            room = free[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], free[place]
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(Piece(index))
        if room - length not in with_room:
            with_room[room - length] = []
            insort(free, room - length)
        with_room[room - length].append(row)
    return [tuple(row) for row in rows]


def pack_wrap(lengths: NDArray[np.int64], order: Sequence[int], capacity: int) -> list[Row]:
    """Documents end to end, cut where a row is full.

    The piece behind a cut begins with the last token before it once more, as context, so that every token but a
    document's first is predicted exactly once. Arguments as for `pack_fit`; documents of any length, capacity ≥ 2.
    """
    rows: list[list[Piece]] = [[]]
    room = capacity
    for index in order:
        start, length = 0, int(lengths[index])
        while length - start > room:
            if room >= 2:  # one token alone predicts nothing
                rows[-1].append(Piece(index, start, start + room))
                start += room - 1
            rows.append([])
            room = capacity
        rows[-1].append(Piece(index, start, length))
        room -= length - start
    return [tuple(row) for row in rows if row]


def with_targets(rows: Sequence[Row], counted: NDArray[np.bool_], starts: NDArray[np.int64]) -> list[Row]:
    """Without the pieces that predict nothing that counts, and without the rows that are then empty."""
    before = np.concatenate([[0], np.cumsum(counted)])

    def targets(piece: Piece) -> int:
        first = int(starts[piece.index])
        stop = int(starts[piece.index + 1]) if piece.stop is None else first + piece.stop
        return int(before[stop] - before[first + piece.start + 1])

    kept = (tuple(piece for piece in row if targets(piece)) for row in rows)
    return [row for row in kept if row]
