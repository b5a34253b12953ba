"""Settings → a vLLM engine that holds all models of the file, and the registry of their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from motet.composers.vocabulary import VocabularyMismatch, read_vocabulary, shared_width
from motet.server.adapters import merge_adapter
from motet.server.config import ModelConfig
from motet.server.engines.base import Engine, ModelInfo
from motet.server.loading import Told, check_width, find_sources, load_tokenizer, registry_of
from motet.server.operator_file import ConfigError, Configuration
from motet.server.registry import Registry
from motet.server.sources import Source
from motet.server.tokenizer import Tokenizer

if TYPE_CHECKING:
    from motet.server.engines.vllm.loading import Checkpoint


def load_vllm(configuration: Configuration, tell: Told) -> tuple[Engine, Registry]:
    """What can be known from the configurations is checked first: vLLM takes its time to start.

    Raises:
        ConfigError: vLLM is missing, options that it cannot take, models that do not belong together; all together.
    """
    from motet.server.engines.vllm.internals import VllmUnavailable, check_version
    from motet.server.engines.vllm.loading import EngineArgsError, check_engine_args, start

    config = configuration.settings.engine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        check_version()
        check_engine_args(config.engine_args, configuration.settings.models)
    except VllmUnavailable as error:
        raise ConfigError([f"engine.kind: {error}."]) from error
    except EngineArgsError as error:
        raise ConfigError([f"engine.{problem}" for problem in error.problems]) from error
    sources = find_sources(configuration)
    tokenizers, infos = inspect(configuration, sources)
    registry = registry_of(configuration, sources, tokenizers, infos)
    tell(f"starting vLLM with {', '.join(infos)}")
    try:
        engine = start(
            checkpoints(sources, tell),
            infos,
            kv_cache_gib=config.kv_cache_gib,
            max_running=config.max_running,
            engine_args=config.engine_args,
        )
    except EngineArgsError as error:
        raise ConfigError(error.problems) from error
    except (RuntimeError, ValueError) as error:  # its own reasons stand in its log, which its processes write
        raise ConfigError([f"vLLM did not start: {error}"]) from error
    return engine, registry


def checkpoints(sources: Mapping[str, Source], tell: Told) -> dict[str, Checkpoint]:
    """Name → where full weights are. Adapters are merged into their base once, in the cache."""
    from motet.server.engines.vllm.loading import CACHE, Checkpoint

    found: dict[str, Checkpoint] = {}
    for name, source in sources.items():
        if source.base is None:
            found[name] = Checkpoint(source.path, source.revision)
        else:
            tell(f"merging the adapter of {name} into {source.base}")
            found[name] = Checkpoint(str(merged_checkpoint(source, CACHE.expanduser())))
    return found


def merged_checkpoint(source: Source, cache: Path) -> Path:
    """The folder of an adapter's base with the adapter merged into it; made where it is not there yet."""
    from transformers import AutoModelForCausalLM

    files = sorted(Path(source.path).glob("adapter_*"))
    digest = hashlib.sha256(f"{source.checkpoint}@{source.checkpoint_revision}".encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = cache / "merged" / digest.hexdigest()[:16]
    if not (folder / "config.json").is_file():
        base = AutoModelForCausalLM.from_pretrained(
            source.checkpoint, revision=source.checkpoint_revision, dtype="auto"
        )
        partial = folder.with_suffix(".partial")
        merge_adapter(base, source).save_pretrained(partial)
        partial.rename(folder)
    return folder


def inspect(
    configuration: Configuration, sources: Mapping[str, Source]
) -> tuple[dict[str, Tokenizer], dict[str, ModelInfo]]:
    """Tokenizers and facts of all models; no weights are read.

    Raises:
        ConfigError: files that cannot be read, settings that one composite cannot hold, unlike vocabularies.
    """
    tokenizers: dict[str, Tokenizer] = {}
    infos: dict[str, ModelInfo] = {}
    problems: list[str] = []
    for name, model in configuration.settings.models.items():
        problems += _unfit(name, model, configuration)
        try:
            tokenizers[name], infos[name] = _inspect(name, model, sources[name], configuration)
        except (OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    problems += _mismatches(tokenizers, infos)
    if problems:
        raise ConfigError(problems)
    return tokenizers, infos


def _inspect(
    name: str, model: ModelConfig, source: Source, configuration: Configuration
) -> tuple[Tokenizer, ModelInfo]:
    from motet.server.engines.facts import read_facts

    config = configuration.settings.engine
    tokenizer = load_tokenizer(*source.tokenizer)
    vocab_size = read_vocabulary(tokenizer.hf, 0).size
    check_width(source, vocab_size)
    info = read_facts(
        name,
        source.checkpoint,
        source.checkpoint_revision,
        dtype=model.dtype or config.dtype,
        device="vllm",
        vocab_size=vocab_size,
        max_model_len=config.max_model_len,
    )
    return tokenizer, info


def _unfit(name: str, model: ModelConfig, configuration: Configuration) -> list[str]:
    if model.device is None:
        return []
    return [f"models.{name}.device: vLLM places all members of a composite itself."]


def _mismatches(tokenizers: dict[str, Tokenizer], infos: dict[str, ModelInfo]) -> list[str]:
    """One composite has one dtype and one vocabulary."""
    problems: list[str] = []
    dtypes = {info.dtype: name for name, info in infos.items()}
    if len(dtypes) > 1:
        named = ", ".join(f"{name!r} is {dtype}" for dtype, name in dtypes.items())
        problems.append(f"engine.dtype: members of one vLLM engine have one dtype, but {named}. Set engine.dtype.")
    try:
        shared_width({name: read_vocabulary(tokenizers[name].hf, info.vocab_size) for name, info in infos.items()})
    except VocabularyMismatch as mismatch:
        problems.append(f"models: one vLLM engine composes over one vocabulary, but {mismatch}.")
    return problems
