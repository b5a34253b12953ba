"""Tasks: what a recipe measures, one file each. A recipe's `type` decides which one is meant."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from motet.evaluation.tasks.eft_grid import EftGrid
from motet.evaluation.tasks.extraction import Extraction
from motet.evaluation.tasks.gap_closed import GapClosed
from motet.evaluation.tasks.ignorance import Ignorance
from motet.evaluation.tasks.leak import Leak
from motet.evaluation.tasks.muse import Muse
from motet.evaluation.tasks.quality import Quality
from motet.evaluation.tasks.robustness import Robustness
from motet.evaluation.tasks.tofu import Tofu

AnyTask: TypeAlias = Annotated[
    GapClosed | EftGrid | Tofu | Ignorance | Muse | Robustness | Leak | Extraction | Quality,
    Field(discriminator="type"),
]
