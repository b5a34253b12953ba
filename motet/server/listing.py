"""What `motet models` and `motet config show` print."""

from __future__ import annotations

from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from motet.composers.roles import named_models
from motet.server.config import ModelConfig
from motet.server.operator_file import Configuration
from motet.server.sources import Source, find_source

PIPE_WIDTH = 300
GIB = 1 << 30
HEADINGS = ("model", "parameters", "weights", "dtype", "KV bytes / token", "context", "template", "compositions")
FAMILY_HEADINGS = ("vLLM engine", "models", "dtype", "KV bytes / token")


def print_models(configuration: Configuration) -> None:
    """One row per model, read from its configuration and the shapes of its weights: nothing is loaded."""
    table = Table(*HEADINGS, show_edge=False, box=SIMPLE_HEAD)
    for name, model in configuration.settings.models.items():
        table.add_row(name, *_facts(model, configuration), ", ".join(_used_by(name, configuration)))
    _print(table)
    if configuration.settings.engine.kind == "vllm":
        _print(_families(configuration))


def _families(configuration: Configuration) -> Table:
    """Which models share a vLLM engine, and what a token costs there whatever a request composes.

    Raises:
        ConfigError: models that cannot be read or do not fit together.
    """
    from motet.server.engines.vllm.speculation import draft_of
    from motet.server.families import per_family
    from motet.server.loading import find_sources
    from motet.server.loading_vllm import inspect

    table = Table(*FAMILY_HEADINGS, show_edge=False, box=SIMPLE_HEAD)
    sources = find_sources(configuration)
    _, infos, families = inspect(configuration, sources)
    draft = draft_of(configuration.settings.engine.engine_args)
    costs = per_family(families, sources, {name: info.kv_bytes_per_token for name, info in infos.items()}, draft)
    for family in families:
        table.add_row(family.name, ", ".join(family.models), family.dtype, f"{costs[family.name]:,}")
    return table


def _print(table: Table) -> None:
    """On a terminal as wide as it is; into a file or pipe nothing is cut off."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


def _facts(model: ModelConfig, configuration: Configuration) -> list[str]:
    from motet.models.checkpoint import read_config
    from motet.server.engines.facts import DTYPE_BYTES, kv_bytes, num_parameters, shapes_of
    from motet.server.engines.torch.quantization import weight_bytes

    try:
        source = find_source(model, configuration.folder)
        checkpoint, revision = source.checkpoint, source.checkpoint_revision
        config = cast(Any, read_config(checkpoint, revision))
        text = config.get_text_config()
        template = model.template or ("chat" if _has_template(source) else "plain")
        dtype = _dtype(model, configuration, text)
        context = str(getattr(text, "max_position_embeddings", "?"))
        weights = weight_bytes(shapes_of(config), model.quantize, DTYPE_BYTES.get(dtype, 4))
        size = f"{weights / GIB:.2f} GiB" + (f" ({model.quantize})" if model.quantize else "")
        return [f"{num_parameters(config):,}", size, dtype, f"{kv_bytes(text, dtype):,}", context, template]
    except (OSError, ValueError) as error:
        return [str(error).splitlines()[0], *[""] * 5]


def _has_template(source: Source) -> bool:
    from motet.server.tokenizer import Tokenizer

    return Tokenizer.load(*source.tokenizer).has_chat_template


def _dtype(model: ModelConfig, configuration: Configuration, text: Any) -> str:
    asked = model.dtype or configuration.settings.engine.dtype
    if asked != "auto":
        return asked
    from motet.server.engines.facts import own_dtype

    return own_dtype(text)


def _used_by(name: str, configuration: Configuration) -> list[str]:
    return [
        composition
        for composition, value in configuration.compositions.items()
        if name in {model for _, model in named_models(value, "")}
    ]


def print_origins(configuration: Configuration) -> None:
    table = Table("setting", "value", "from", show_edge=False, box=SIMPLE_HEAD)
    for name, value, origin in configuration.origins():
        table.add_row(name, "-" if value is None else str(value), origin)
    _print(table)
