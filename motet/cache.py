"""Where Motet keeps what it can make anew: the demo's models, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """`$MOTET_CACHE`, or `~/.cache/motet`."""
    return Path(os.environ.get("MOTET_CACHE") or Path.home() / ".cache" / "motet")
