"""What curation says of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from motet.training.data.files import RecordSource

Action = Literal["removed", "replaced"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row that is not kept as it was, why, and the score that says so (None for duplicates of the very same text)."""

    source: RecordSource
    action: Action
    reason: str
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"row": str(self.source), "action": self.action, "reason": self.reason, "score": self.score}
