"""`python -m tests.soak.points.saboteur FILE serve …`: the server, whose next forward raises once FILE exists.

What is raised is a BaseException, as a panicking extension raises it: outside of everything that `except Exception`
catches. The places are torch's own functions, which every engine calls in every step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from motet.cli import main

PLACES = ("linear", "embedding", "rms_norm", "scaled_dot_product_attention")


class Panic(BaseException):
    """As pyo3's PanicException is."""


def breaking(original: Callable[..., Any], trigger: Path) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if trigger.exists():
            raise Panic("the extension panicked")
        return original(*arguments, **named)

    return call


if __name__ == "__main__":
    trigger = Path(sys.argv.pop(1))
    for place in PLACES:
        setattr(F, place, breaking(getattr(F, place), trigger))
    main()
