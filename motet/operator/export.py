"""The operator's file as a folder that vLLM's own server serves: `motet vllm export`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from motet.models.info import ModelInfo
from motet.models.tokenizer import Tokenizer
from motet.operator.file import Configuration
from motet.operator.loading_vllm import checkpoints, inspect
from motet.operator.sources import find_sources

if TYPE_CHECKING:
    from motet.engines.vllm.loading import Checkpoint

FIRST_PORT = 8000  # vLLM's default; one more for each further family


def export(configuration: Configuration, out: Path) -> list[str]:
    """Writes the composite's configuration and the first model's tokenizer; weights stay where they are.

    Several families become a folder each inside `out`, by their names.

    Returns:
        The command that serves each folder.

    Raises:
        ConfigError: models that cannot be read or do not belong together.
    """
    sources = find_sources(configuration)
    tokenizers, infos, families = inspect(configuration, sources)
    found = checkpoints(sources, lambda _: None)
    commands: list[str] = []
    for number, family in enumerate(families):
        folder = out if len(families) == 1 else out / quote(family.name, safe="")
        first = tokenizers[family.models[0]]
        _write(folder, {name: found[name] for name in family.models}, infos, first)
        commands.append(
            _command(folder, family.dtype) + (f" --port {FIRST_PORT + number}" if len(families) > 1 else "")
        )
    return commands


def _write(
    folder: Path, models: Mapping[str, Checkpoint], infos: Mapping[str, ModelInfo], tokenizer: Tokenizer
) -> None:
    from motet.engines.vllm.config import write_composite
    from motet.engines.vllm.loading import composite

    write_composite(folder, composite(models, {name: infos[name] for name in models}))
    tokenizer.hf.save_pretrained(str(folder))


def _command(folder: Path, dtype: str) -> str:
    from motet.engines.vllm.loading import CHECK, WORKER

    return (
        f"python -m vllm.entrypoints.openai.api_server --model {shlex.quote(str(folder))} "
        f"--worker-cls {WORKER} --logits-processors {CHECK} --dtype {dtype} "
        "--no-async-scheduling --disable-hybrid-kv-cache-manager"
    )
