"""How often guesses were right, by how sure the draft was of them."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable

BOUNDS = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of the draft's probability of its guess, between two classes of sureness
CENTRES = (0.2, 0.4, 0.6, 0.78, 0.9, 0.97, 0.99)  # of the classes
PRIOR = 4.0  # guesses that a class is thought to have seen before any
HORIZON = 500.0  # guesses after which older ones count half or less: texts change
REMEMBERED = 256  # compositions whose records are kept


class Record:
    """Right and tried guesses of one draft under one composition, in classes of the draft's own sureness.

    Args:
        believed: the share of right guesses that is expected before any is seen.
    """

    def __init__(self, believed: float) -> None:
        self._believed = believed
        self._passed_over = 0
        self._begin()

    def _begin(self) -> None:
        self._all_right, self._all_tried = PRIOR * self._believed, PRIOR
        self._right = [PRIOR * centre for centre in CENTRES]
        self._tried = [PRIOR] * len(CENTRES)

    def probability(self, sureness: float) -> float:
        """That a guess of this sureness (0 to 1) is right."""
        place = bisect_right(BOUNDS, sureness)
        return self._right[place] / self._tried[place]

    def add(self, sureness: float, right: bool) -> None:
        place = bisect_right(BOUNDS, sureness)
        self._right[place] += right
        self._tried[place] += 1.0
        self._all_right += right
        self._all_tried += 1.0
        if self._tried[place] > HORIZON:
            self._right[place] /= 2
            self._tried[place] /= 2
        if self._all_tried > HORIZON:
            self._all_right /= 2
            self._all_tried /= 2

    def judged(self, taken: bool, patience: int) -> bool:
        """Notes whether the draft is used; one that was not for `patience` judgements is believed anew: whether it is
        now."""
        self._passed_over = 0 if taken else self._passed_over + 1
        if self._passed_over < patience:
            return False
        self._passed_over = 0
        self._begin()
        return True

    @property
    def acceptance(self) -> float:
        """Of all guesses, however sure."""
        return self._all_right / self._all_tried


class Records:
    """The records of the compositions that were used last."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, Record] = OrderedDict()

    def of(self, key: Hashable, believed: float) -> Record:
        found = self._found.setdefault(key, Record(believed))
        self._found.move_to_end(key)
        if len(self._found) > REMEMBERED:
            self._found.popitem(last=False)
        return found
