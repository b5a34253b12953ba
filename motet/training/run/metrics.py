"""What a run reports: one JSON object per line of `metrics.jsonl`, and tensorboard where asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from motet.training.run.errors import RunError

FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Metrics:
    """One report. `step` counts done steps of `steps`, `seconds` is training time so far, over all resumptions.

    `loss` and `parts` are those of the step itself; `tokens_per_second` is the mean since the last report and counts
    tokens that are not padding, once whatever the number of views; `grad_norm` is taken before clipping.
    """

    step: int
    steps: int
    loss: float
    parts: Mapping[str, float]
    lr: float
    tokens_per_second: float
    grad_norm: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """As a line of the file has it."""
        return {
            "step": self.step,
            "loss": self.loss,
            "parts": dict(self.parts),
            "lr": self.lr,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "grad_norm": self.grad_norm,
            "seconds": round(self.seconds, 3),
        }


class MetricsFile:
    """Appends to `metrics.jsonl`, which is first cut back to the `length` that a checkpoint remembers.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, output: Path, length: int) -> None:
        self._path = output / FILE
        try:
            self._file = self._path.open("ab")
            self._file.truncate(length)
        except OSError as error:
            raise RunError(f"{self._path}: {error.strerror}") from error

    def write(self, metrics: Metrics) -> None:
        """Appends a line and hands it to the system."""
        try:
            self._file.write((json.dumps(metrics.as_json()) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self._path}: {error.strerror}") from error

    def sync(self) -> int:
        """Bytes so far, on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """No more lines; what a full disk refused is lost."""
        try:
            self._file.close()
        except OSError:
            return


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


class Tensorboard:
    """Scalars in `tensorboard/`; steps that were logged before a resumption are purged by it.

    Raises:
        RunError: tensorboard is not installed.
    """

    def __init__(self, output: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError("logging.tensorboard: the package tensorboard is not installed") from error
        writer: Any = SummaryWriter
        self._writer = cast(_Writer, writer(str(output / "tensorboard"), purge_step=start + 1 if start else None))

    def write(self, metrics: Metrics) -> None:
        """All numbers of a report under `train/`."""
        content = metrics.as_json()
        numbers = {**content.pop("parts"), **content}
        step = numbers.pop("step")
        for name, value in numbers.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Flushes what is buffered."""
        self._writer.close()
