"""What `motet models` and `motet config show` print."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from motet.composers.roles import named_models
from motet.operator.file import ConfigError, Configuration
from motet.operator.settings import ModelConfig
from motet.operator.sources import find_source

PIPE_WIDTH = 300
HEADINGS = ("model", "parameters", "weights", "dtype", "KV bytes / token", "context", "template", "compositions")
FAMILY_HEADINGS = ("vLLM engine", "models", "dtype", "KV bytes / token")


def print_models(configuration: Configuration) -> list[str]:
    """One row per model, read from its configuration and the shapes of its weights: nothing is loaded.

    Returns:
        What is wrong with models that cannot be read, one sentence each.
    """
    table = Table(*HEADINGS, show_edge=False, box=SIMPLE_HEAD)
    unread: list[str] = []
    for name, model in configuration.settings.models.items():
        try:
            facts = _facts(name, model, configuration)
        except ConfigError as error:
            unread += error.problems
            facts = ["cannot be read", "", "", "", ""]
        table.add_row(name, *facts, ", ".join(_used_by(name, configuration)))
    _print(table)
    if unread:
        return unread
    if configuration.settings.engine.kind == "vllm":
        _print(_families(configuration))
    return []


def _families(configuration: Configuration) -> Table:
    """Which models share a vLLM engine, and what a token costs there whatever a request composes.

    Raises:
        ConfigError: models that cannot be read or do not fit together.
    """
    from motet.engines.vllm.speculation import draft_of
    from motet.operator.families import per_family
    from motet.operator.loading_vllm import inspect
    from motet.operator.sources import find_sources

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


def _facts(name: str, model: ModelConfig, configuration: Configuration) -> list[str]:
    """Raises ConfigError: the model cannot be read."""
    from motet.models.memory import gib
    from motet.operator.backbones import with_backbone
    from motet.operator.memory import weight_bytes
    from motet.operator.preflight import computing, device_of, read_model

    engine, models = configuration.settings.engine, configuration.settings.models
    try:
        source, _ = with_backbone(name, find_source(model, configuration.folder, models), configuration)
        behind = computing(model, source, models)
        device = "vllm" if engine.kind == "vllm" else device_of(behind, engine)
        tokenizer, info = read_model(name, behind, source, engine, device)
        stored = model.quantize or (f"+ {model.draft_quantize} to guess" if model.draft_quantize else "")
        weights = gib(weight_bytes(source, info)) + (f" ({stored})" if stored else "")
    except (OSError, ValueError) as error:
        raise ConfigError([f"models.{name}: {error}"]) from error
    template = model.template or ("chat" if tokenizer.has_chat_template else "plain")
    numbers = [f"{number:,}" for number in (info.num_parameters, info.kv_bytes_per_token)]
    return [numbers[0], weights, info.dtype, numbers[1], str(info.max_model_len), template]


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
