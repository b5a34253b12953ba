"""Settings → loaded models behind an engine, and the registry of their names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from motet.composers.vocabulary import VocabularyMismatch, vocabulary_size
from motet.engines.base import Engine
from motet.experts.bundle import BundleError
from motet.models.memory import GIB
from motet.models.soft_prompts import read_soft_prompt
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import merge_adapter
from motet.operator.backbones import low_ranks
from motet.operator.experts import head_of
from motet.operator.file import ConfigError, Configuration
from motet.operator.preflight import Prepared, device_of, own_ends, prepare
from motet.operator.registry import Registry
from motet.operator.settings import EngineConfig, Log, ModelConfig
from motet.operator.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from motet.engines.torch import Adapter, SoftPrompt
    from motet.engines.torch import Member as TorchMember
    from motet.engines.torch import Model as TorchModel

log = logging.getLogger(__name__)

# what the load check reads: ordinary text, on which rounding is that of real use
SAMPLE = (
    "The cat sat on the mat. In 1876, Alexander Graham Bell made the first telephone call; def add(a, b): return a. "
    "Water boils at 100 degrees, and the quick brown fox jumps over the lazy dog again and again."
)


def load_engine(configuration: Configuration, log: Log = lambda _: None) -> tuple[Engine, Registry]:
    """Loads every model of the operator's file, in the engine that it names.

    Raises:
        ConfigError: models that cannot be loaded or are not what their expert.json says; then unlike vocabularies and
            unfit experts in named compositions; all together.
    """
    if configuration.settings.engine.kind == "vllm":
        from motet.operator.loading_vllm import load_vllm

        return load_vllm(configuration, log)
    return _load_torch(configuration, log)


def _load_torch(configuration: Configuration, log: Log) -> tuple[Engine, Registry]:
    config = configuration.settings.engine
    foreign = [name for name in ("engine_args", "families") if getattr(config, name)]
    if foreign:
        raise ConfigError([f"engine.{name}: they are vLLM's, but engine.kind is torch." for name in foreign])
    prepared = prepare(configuration)
    from motet.engines.torch import EngineSettings, TorchEngine  # slow to import: refusals come first

    for warning in prepared.warnings:
        log(f"warning: {warning}")
    loaded = load_models(configuration, prepared, configuration.settings.models, log)
    members = {name: replace(known, info=loaded[name].info) for name, known in prepared.registry.members.items()}
    registry = replace(prepared.registry, members=members)
    settings = EngineSettings(
        kv_cache_bytes=int(config.kv_cache_gib * GIB),
        max_running=config.max_running,
        prefill_chunk=config.prefill_chunk,
        speculation=config.wished_speculation,
    )
    return TorchEngine(loaded, settings, restart=config.restart), registry


def load_models(
    configuration: Configuration,
    prepared: Prepared,
    names: Collection[str],
    log: Log = lambda _: None,
    known: Callable[[str], TorchMember | Adapter | None] = lambda _: None,
) -> dict[str, TorchModel]:
    """These models of the file: adapters and soft prompts behind those that compute them.

    Args:
        known: a model that is loaded already, by its name.

    Raises:
        ConfigError: what cannot be loaded, all together.
    """
    from transformers.utils.logging import disable_progress_bar

    from motet.engines.torch import Adapter, ModelLoadError, SoftPrompt

    disable_progress_bar()
    settings = configuration.settings
    loaded: dict[str, TorchModel] = {}
    problems: list[str] = []
    for name in sorted(names, key=lambda name: _rank(prepared.sources[name])):
        source, tokenizer = prepared.sources[name], prepared.tokenizers[name]
        try:
            log(f"loading {name}" + _how(source))
            if source.backbone is None:
                loaded[name] = load_model(name, source, settings.models[name], settings.engine, tokenizer)
            elif (behind := loaded.get(source.backbone) or known(source.backbone)) is not None:
                assert not isinstance(behind, SoftPrompt), "none stands in front of another"
                if source.virtual_tokens:
                    loaded[name] = load_soft_prompt(name, source, behind, tokenizer)
                else:
                    beside = load_adapter(name, source, behind.member, tokenizer)
                    loaded[name] = beside or load_model(name, source, settings.models[name], settings.engine, tokenizer)
        except (BundleError, ModelLoadError, VocabularyMismatch, OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    if problems:
        for model in loaded.values():
            if isinstance(model, SoftPrompt | Adapter):  # what computes it may stay
                model.forget()
        raise ConfigError(problems)
    return loaded


def _how(source: Source) -> str:
    if source.backbone is not None:
        what = f"{source.virtual_tokens} virtual tokens in front of" if source.virtual_tokens else "an adapter beside"
        return f": {what} {source.backbone}"
    return f": the adapter is merged into {source.base}" if source.base else ""


def _rank(source: Source) -> int:
    """When a model is loaded: what computes others first; soft prompts may stand in front of adapters."""
    return 0 if source.backbone is None else 2 if source.virtual_tokens else 1


def load_adapter(name: str, source: Source, member: TorchMember, tokenizer: Tokenizer) -> Adapter | None:
    """An adapter beside a loaded model; None, and why in the log, where it must be merged.

    Raises:
        OSError: its file cannot be read.
    """
    from motet.engines.torch import attach_adapter

    try:
        return attach_adapter(name, member, low_ranks(source), own_ends(source, tokenizer))
    except ValueError as error:
        log.warning("%s: it is merged into a copy of its base's weights: %s", name, error)
        return None


def load_soft_prompt(name: str, source: Source, behind: TorchMember | Adapter, tokenizer: Tokenizer) -> SoftPrompt:
    """A soft prompt in front of a loaded model. Raises OSError, ValueError: it cannot stand there."""
    from motet.engines.torch import soft_prompt

    rows = read_soft_prompt(source.path, source.revision, source.virtual_tokens)
    return soft_prompt(name, behind, rows, own_ends(source, tokenizer))


def load_model(
    name: str,
    source: Source,
    model: ModelConfig,
    config: EngineConfig,
    tokenizer: Tokenizer,
    weights: PreTrainedModel | None = None,
) -> TorchMember:
    """One model behind the embedded engine's attention.

    Args:
        weights: a model of the same architecture that stands in for the checkpoint's (one that was trained further).

    Raises:
        BundleError, ModelLoadError, OSError, ValueError: it cannot be loaded, or computes something else here
            than in transformers.
    """
    import torch

    from motet.engines.torch import load_member

    def adapted(checkpoint: PreTrainedModel) -> PreTrainedModel:
        if weights is not None:
            return weights
        return checkpoint if source.base is None else merge_adapter(checkpoint, source)

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
        adapt=adapted,
        quantization=model.quantize,
        draft=model.draft_quantize,
        sample=tokenizer.encode(SAMPLE, add_special_tokens=True),
        head=head_of(source) if weights is None else None,
    )
