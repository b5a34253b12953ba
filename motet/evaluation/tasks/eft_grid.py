"""The grid of emulated fine-tuning: scale of pre-training by scale of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from motet.evaluation.bench import Bench, Findings, Row
from motet.evaluation.measures.statistics import mean
from motet.evaluation.tasks.gap_closed import graded
from motet.evaluation.tasks.task import MaxTokens, Task

Record = dict[str, Any]


class EftGrid(Task, frozen=True):
    """Exact match of every cell of `grid` (Mitchell et al. 2023, arXiv:2310.12962): pre-training scale → fine-tuning
    scale → subject. The diagonal are the tuned models themselves, the corners compositions."""

    type: Literal["eft_grid"] = "eft_grid"
    data: str
    grid: dict[str, dict[str, str]]
    max_tokens: MaxTokens = 64

    @property
    def files(self) -> tuple[str, ...]:
        return (self.data,)

    @property
    def named(self) -> Mapping[str, str]:
        return {f"grid.{row}.{column}": name for row, cells in self.grid.items() for column, name in cells.items()}

    def requests(self, bench: Bench) -> int:
        return sum(map(len, self.grid.values())) * len(bench.items(self.data))

    async def run(self, bench: Bench) -> Findings:
        items = bench.items(self.data)
        questions = [item.question for item in items]
        records: list[Record] = []
        measures: dict[str, Row] = {}
        for row, cells in self.grid.items():
            exact: dict[str, float | None] = {}
            for column, name in cells.items():
                replies = await bench.ask(bench.subjects[name], questions, max_tokens=self.max_tokens)
                cell = graded(name, items, replies)
                exact[f"fine-tuning {column}"] = mean([record["exact"] for record in cell])
                records += [{"pre-training": row, "fine-tuning": column, **record} for record in cell]
            measures[f"pre-training {row}"] = exact
        return Findings(measures, records)
