"""Settings → loaded models behind an engine, and the registry of their names. The only place that imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from motet.composers.spec import CompositionError
from motet.composers.vocabulary import VocabularyMismatch, read_vocabulary, vocabulary_size
from motet.engines.base import Engine, ModelInfo
from motet.experts.fit import Known
from motet.models.checkpoint import read_config, read_generation_config
from motet.models.ends import end_token_ids
from motet.models.memory import GIB
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import merge_adapter, num_tokens
from motet.operator.experts import read_experts
from motet.operator.file import ConfigError, Configuration
from motet.operator.preflight import Prepared, device_of, prepare
from motet.operator.registry import LoadedModel, Registry, Template
from motet.operator.settings import EngineConfig, ModelConfig, source_of
from motet.operator.sources import Source, find_source

if TYPE_CHECKING:
    from motet.engines.torch import Member as TorchMember

Told = Callable[[str], None]
# what the load check reads: ordinary text, on which rounding is that of real use
SAMPLE = (
    "The cat sat on the mat. In 1876, Alexander Graham Bell made the first telephone call; def add(a, b): return a. "
    "Water boils at 100 degrees, and the quick brown fox jumps over the lazy dog again and again."
)


def load_engine(configuration: Configuration, tell: Told = lambda _: None) -> tuple[Engine, Registry]:
    """Loads every model of the operator's file, in the engine that it names.

    Raises:
        ConfigError: models that cannot be loaded or are not what their expert.json says; then unlike vocabularies and
            unfit experts in named compositions; all together.
    """
    if configuration.settings.engine.kind == "vllm":
        from motet.operator.loading_vllm import load_vllm

        return load_vllm(configuration, tell)
    return _load_torch(configuration, tell)


def _load_torch(configuration: Configuration, tell: Told) -> tuple[Engine, Registry]:
    config = configuration.settings.engine
    foreign = [name for name in ("engine_args", "families") if getattr(config, name)]
    if foreign:
        raise ConfigError([f"engine.{name}: they are vLLM's, but engine.kind is torch." for name in foreign])
    prepared = prepare(configuration)
    from motet.engines.torch import EngineSettings, TorchEngine  # slow to import: refusals come first

    for warning in prepared.warnings:
        tell(f"warning: {warning}")
    loaded = _load_models(configuration, prepared, tell)
    members = {name: replace(known, info=loaded[name].info) for name, known in prepared.registry.members.items()}
    registry = replace(prepared.registry, members=members)
    settings = EngineSettings(
        kv_cache_bytes=int(config.kv_cache_gib * GIB),
        max_running=config.max_running,
        prefill_chunk=config.prefill_chunk,
    )
    return TorchEngine(loaded, settings), registry


def registry_of(
    configuration: Configuration,
    sources: Mapping[str, Source],
    tokenizers: Mapping[str, Tokenizer],
    infos: Mapping[str, ModelInfo],
) -> Registry:
    """The names that requests may use. Raises ConfigError, as `read_experts` and `check` do."""
    experts = read_experts(sources, tokenizers)
    members = {
        name: _loaded(name, info, tokenizers[name], experts[name], configuration) for name, info in infos.items()
    }
    registry = Registry(members, configuration.compositions, created=int(time.time()))
    check(registry, configuration)
    return registry


def find_sources(configuration: Configuration) -> dict[str, Source]:
    """Raises ConfigError: adapters whose bases cannot be found, all together."""
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for name, model in configuration.settings.models.items():
        try:
            sources[name] = find_source(model, configuration.folder)
        except (OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return sources


def _load_models(configuration: Configuration, prepared: Prepared, tell: Told) -> dict[str, TorchMember]:
    from transformers.utils.logging import disable_progress_bar

    from motet.engines.torch import ModelLoadError

    disable_progress_bar()
    loaded: dict[str, TorchMember] = {}
    problems: list[str] = []
    for name, model in configuration.settings.models.items():
        source, tokenizer = prepared.sources[name], prepared.tokenizers[name]
        try:
            tell(f"loading {name}" + (f": the adapter is merged into {source.base}" if source.base else ""))
            loaded[name] = _load(name, source, model, configuration.settings.engine, tokenizer)
        except (ModelLoadError, VocabularyMismatch, OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return loaded


def load_tokenizer(source: str, revision: str | None) -> Tokenizer:
    """Raises ValueError: it cannot be loaded."""
    try:
        return Tokenizer.load(source, revision)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ValueError(f"the tokenizer of {source} cannot be loaded: {_needs(source) or error}") from error


def _needs(source: str) -> str | None:
    """The package that reads a tokenizer without tokenizer.json, where it is not installed: transformers then names
    another one."""
    lacking = [name for name in ("sentencepiece", "google.protobuf") if find_spec(name) is None]
    is_pieces = Path(source, "tokenizer.model").is_file() and not Path(source, "tokenizer.json").is_file()
    packages = " ".join(name.removeprefix("google.") for name in lacking)
    return f"tokenizer.model needs a package that is missing: pip install {packages}" if is_pieces and lacking else None


def _load(name: str, source: Source, model: ModelConfig, config: EngineConfig, tokenizer: Tokenizer) -> TorchMember:
    import torch

    from motet.engines.torch import load_member

    dtype = model.dtype or config.dtype
    return load_member(
        name,
        source.checkpoint,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        device=device_of(model, config),
        vocab_size=vocabulary_size(tokenizer.hf),
        max_model_len=config.max_model_len,
        revision=source.checkpoint_revision,
        ends=own_ends(source, tokenizer),
        adapt=None if source.base is None else lambda checkpoint: merge_adapter(checkpoint, source),
        quantization=model.quantize,
        sample=tokenizer.encode(SAMPLE, add_special_tokens=True),
    )


def own_ends(source: Source, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ends of an answer beside those of the model's configuration: of the generation configurations of checkpoint
    and adapter, and of the tokenizer."""
    adapter = source.folder() if source.base else None
    checkpoint = read_generation_config(source.checkpoint, source.checkpoint_revision)
    beside = None if adapter is None else read_generation_config(str(adapter))
    return end_token_ids(checkpoint, beside, tokenizer.hf)


def check_width(source: Source, vocab_size: int) -> None:
    """Raises ValueError: the tokenizer makes ids for which the model has no embedding."""
    config = cast(Any, read_config(source.checkpoint, source.checkpoint_revision))
    width = int(config.get_text_config().vocab_size)
    if width < vocab_size and source.base is not None:  # tokens that were added when the adapter was trained
        width = num_tokens(source) or width
    if width < vocab_size:
        raise ValueError(f"the model has {width} tokens, but its tokenizer has ids up to {vocab_size - 1}.")


def _loaded(
    name: str, info: ModelInfo, tokenizer: Tokenizer, expert: Known, configuration: Configuration
) -> LoadedModel:
    model = configuration.settings.models[name]
    template: Template = model.template or ("chat" if tokenizer.has_chat_template else "plain")
    source = Path(source_of(model, configuration.folder)).name if Path(model.path).is_absolute() else model.path
    vocabulary = read_vocabulary(tokenizer.hf, info.vocab_size, cut=model.vocab == "cut")
    return LoadedModel(info, tokenizer, vocabulary, template, source, expert.bundle, expert.weights, model.check_expert)


def check(registry: Registry, configuration: Configuration) -> None:
    """Raises ConfigError: templates that do not exist, named compositions that cannot be built."""
    problems = [
        f"models.{name}.template: the model has no chat template."
        for name, member in registry.members.items()
        if member.template == "chat" and not member.tokenizer.has_chat_template
    ]
    problems += _composition_problems(registry, registry.compositions)
    if problems:
        raise ConfigError(problems)


def _composition_problems(registry: Registry, compositions: Mapping[str, object]) -> list[str]:
    problems: list[str] = []
    for name in compositions:
        try:
            registry.card(name)
        except CompositionError as error:
            problems.append(f"compositions.{name}: {error}")
    return problems
