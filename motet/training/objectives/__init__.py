"""What is minimised: one objective per file, all of them in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from motet.training.objectives.completion import Completion

OBJECTIVES = {"sft": Completion}

if TYPE_CHECKING:
    AnyObjective = Completion
else:
    AnyObjective = Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="type")]  # noqa: UP007
