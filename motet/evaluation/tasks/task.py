"""What every task is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from motet.evaluation.bench import Bench, Findings
from motet.settings import Setting

MaxTokens = Annotated[int, Field(ge=1)]


class Task(Setting, frozen=True):
    """Measures every subject of a recipe. `type` names it."""

    type: str

    @property
    def files(self) -> tuple[str, ...]:
        """The data files that it reads, relative to the recipe's root."""
        return ()

    @property
    def named(self) -> Mapping[str, str]:
        """Field → the subject that it names."""
        return {}

    @abstractmethod
    def requests(self, bench: Bench) -> int:
        """How many requests `run` makes, each of which the API tells when it is over."""

    @abstractmethod
    async def run(self, bench: Bench) -> Findings:
        """Asks the API, and measures.

        Raises:
            RecipeError: the data are not what the task needs.
        """
