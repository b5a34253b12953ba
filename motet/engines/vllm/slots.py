"""The running batch of Model Runner V2: requests keep a slot, and a step's batch is an order of slots."""

from __future__ import annotations

from collections.abc import Sequence

from motet.engines.vllm.table import Row


class Slots:
    """See `table.Batch`. A request has its slot until it ends or is preempted.

    The rows' `output` must be lists: they are extended here, since the runner keeps its tokens on the device.
    """

    def __init__(self, size: int) -> None:
        self._rows: list[Row | None] = [None] * size
        self._outputs: list[list[int]] = [[] for _ in range(size)]
        self._names: dict[str, int] = {}
        self._order: list[int] = []

    def add(self, name: str, slot: int, row: Row | None, output: list[int]) -> None:
        """`output`: the row's own list."""
        self._names[name], self._rows[slot], self._outputs[slot] = slot, row, output

    def remove(self, name: str) -> None:
        slot = self._names.pop(name, None)
        if slot is not None:
            self._rows[slot] = None

    def arrange(self, order: Sequence[int]) -> None:
        """The slots of the next step's batch."""
        self._order = list(order)

    def row(self, index: int) -> Row | None:
        return self._rows[self._order[index]] if index < len(self._order) else None

    def extend(self, index: int, tokens: Sequence[int]) -> None:
        """The request in that place of the batch got tokens."""
        self._outputs[self._order[index]].extend(tokens)
