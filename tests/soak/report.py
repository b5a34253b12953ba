"""The last line of every command: numbers, versions, hardware; the same in a file that can be committed."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("motet", "torch", "transformers", "fastapi", "uvicorn", "pydantic", "llguidance", "tokenizers")


@dataclass(frozen=True, slots=True)
class Environment:
    processor: str
    cores: int
    memory_gib: float
    python: str
    packages: dict[str, str]


def environment() -> Environment:
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return Environment(
        processor=names[0] if names else platform.processor(),
        cores=os.cpu_count() or 0,
        memory_gib=round(memory, 1),
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
    )


def _cpuinfo() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def report(name: str, asked: dict[str, Any], results: Any, out: Path | None) -> None:
    """Prints the last line; writes it to a file as well. Of paths that were given the names are told, no folders."""
    named = {field: Path(value).name if Path(str(value)).is_absolute() else value for field, value in asked.items()}
    whole = {"soak": name, "asked": named, "environment": asdict(environment()), "results": results}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(whole))
