"""Experiments, and the rows of the table that their findings are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.strategies.bench import Bench
from benchmarks.strategies.file import COLUMNS
from benchmarks.strategies.finding import Finding
from motet.composers.catalogue import described
from motet.composers.strategies import STRATEGIES

DIGITS = 4
OWN = "none: a method of Motet's own"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Attributes:
    models: what was composed, for readers.
    run: what it finds.
    real: whether it needs real checkpoints (`--models`).
        texts: whether it needs a file of FACTOR (`--factor`).
    cites: the command and the file that it reads, where it measures nothing itself.
    """

    strategy: str
    models: str
    run: Callable[[Bench], list[Finding]]
    real: bool = False
    texts: bool = False
    cites: str | None = None

    def command(self, name: str) -> str:
        needs = f"{' --models FOLDER' if self.real else ''}{' --factor FILE' if self.texts else ''}"
        ours = f"python -m benchmarks.strategies --only {name}{needs}"
        return self.cites or ours


def absent(why: str) -> Finding:
    """The row of an experiment that was not made."""
    return Finding(why, "", "", "", None, None, 0, None, None, "not measured")


def paper(strategy: str) -> str:
    """Authors, year and number of each, as the strategy's own docstring gives them."""
    papers = described(strategy, STRATEGIES[strategy])["papers"]
    numbers = [f", arXiv:{one['arxiv']}" if one["arxiv"] else "" for one in papers]
    return "; ".join(f"{one['authors']}{number}" for one, number in zip(papers, numbers, strict=True)) or OWN


def rows(found: Mapping[str, Sequence[Finding]], experiments: Mapping[str, Experiment]) -> list[dict[str, str]]:
    """In the order of the experiments; those that were not run have none."""
    return [
        _row(name, experiment, finding) for name, experiment in experiments.items() for finding in found.get(name, ())
    ]


def _row(name: str, experiment: Experiment, finding: Finding) -> dict[str, str]:
    cells = (
        experiment.strategy, finding.claim, paper(experiment.strategy), experiment.models, finding.measure,
        finding.wanted, finding.against, _shown(finding.value), _shown(finding.baseline), str(finding.n),
        _shown(finding.low), _shown(finding.high), finding.verdict, experiment.command(name),
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{round(value, DIGITS):g}"
