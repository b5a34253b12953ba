"""Settings → a vLLM engine for each family of models of the file, and the registry of their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.composers.vocabulary import read_vocabulary
from motet.engines.base import Engine
from motet.engines.vllm.families import Families, Family, crossing
from motet.engines.vllm.memory import KvCache
from motet.engines.vllm.speculation import draft_of, for_models
from motet.models import gguf
from motet.models.checkpoint import load_weights, local, read_tokenizer
from motet.models.info import ModelInfo
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import merge_adapter
from motet.operator.families import group, per_family, shares
from motet.operator.file import ConfigError, Configuration
from motet.operator.preflight import read_model, registry_of
from motet.operator.registry import Registry
from motet.operator.settings import Log, ModelConfig
from motet.operator.sources import Source, each_model, find_sources

if TYPE_CHECKING:
    from motet.engines.vllm.engine import VllmEngine
    from motet.engines.vllm.loading import Checkpoint
    from motet.engines.vllm.memory import Utilization


MERGE = 2  # counts the ways in which adapters were merged: what an older one made is not taken from the cache


def load_vllm(configuration: Configuration, log: Log) -> tuple[Engine, Registry]:
    """One engine per family of models. What can be known from the configurations is checked first: vLLM takes its time
    to start.

    Raises:
        ConfigError: vLLM is missing, options that it cannot take, models that do not belong together; all together.
    """
    memory = _checked_options(configuration)
    sources = find_sources(configuration)
    tokenizers, infos, families = inspect(configuration, sources)
    draft = draft_of(configuration.settings.engine.engine_args)
    costs = per_family(families, sources, {name: memory.cost(info) for name, info in infos.items()}, draft)
    divided = shares(families, costs)
    if isinstance(memory, KvCache):
        held = {
            name: memory.held(share, costs[name], configuration.settings.engine.engine_args)
            for name, share in divided.items()
        }
        infos = _within_cache(configuration, families, infos, held, log)
    registry = registry_of(configuration, sources, tokenizers, infos)
    _check_crossings(registry, families)
    parts = {name: memory.part(share) for name, share in divided.items()}
    found = checkpoints(sources, log)
    _check_models(configuration, families, found, infos)
    return _start_all(configuration, families, found, infos, parts, log), registry


def _within_cache(
    configuration: Configuration,
    families: Sequence[Family],
    infos: Mapping[str, ModelInfo],
    held: Mapping[str, int],
    log: Log,
) -> dict[str, ModelInfo]:
    """vLLM starts only where one context of the greatest length fits into the cache: a length that nobody asked for is
    shortened to that.

    Args:
        held: the longest context by the names of the families.

    Raises:
        ConfigError: the operator asked for more.
    """
    fitted = dict(infos)
    problems: list[str] = []
    for family in families:
        longest, most = min(infos[name].max_model_len for name in family.models), held[family.name]
        whose = ", ".join(family.models)
        if longest <= most:
            continue
        if most < 2 or configuration.settings.engine.max_model_len is not None:
            problems.append(
                f"engine.max_model_len: a context of {longest:,} tokens of {whose} does not fit into the cache, which "
                f"holds {max(0, most):,}; lower it, or raise engine.kv_cache_gib."
            )
            continue
        log(
            f"{whose}: contexts are limited to {most:,} of {longest:,} tokens, which is what the cache holds; "
            "engine.kv_cache_gib raises that"
        )
        for name in family.models:
            fitted[name] = replace(infos[name], max_model_len=min(infos[name].max_model_len, most))
    if problems:
        raise ConfigError(problems)
    return fitted


def check_vllm(configuration: Configuration) -> Registry:
    """What can be known without vLLM itself: the models as they are described. Raises ConfigError, as `inspect` and
    `registry_of` do."""
    sources = find_sources(configuration)
    tokenizers, infos, families = inspect(configuration, sources)
    registry = registry_of(configuration, sources, tokenizers, infos)
    _check_crossings(registry, families)
    return registry


def _checked_options(configuration: Configuration) -> KvCache | Utilization:
    """What memory all engines have.

    Raises:
        ConfigError: vLLM is missing, asked for a runner that cannot run here, or given options that it cannot take.
    """
    from motet.engines.vllm.internals import VllmUnavailable, check_version
    from motet.engines.vllm.loading import EngineArgsError, check_engine_args, check_runner
    from motet.engines.vllm.memory import memory_of

    config = configuration.settings.engine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if config.restart:
        instead = "under vLLM a service manager starts the whole process again (docs/operating.md)"
        raise ConfigError([f"engine.restart: the embedded engine alone begins anew; {instead}."])
    try:
        check_version()
        check_engine_args(config.engine_args, configuration.settings.models)
        check_runner(config.engine_args)
    except VllmUnavailable as error:
        raise ConfigError([f"engine.kind: {error}."]) from error
    except EngineArgsError as error:
        raise ConfigError([f"engine.{problem}" for problem in error.problems]) from error
    try:
        return memory_of(config.engine_args, config.kv_cache_gib, given="kv_cache_gib" in config.model_fields_set)
    except ValueError as error:
        raise ConfigError([f"engine.engine_args.gpu_memory_utilization: {error}."]) from error


def _check_crossings(registry: Registry, families: Sequence[Family]) -> None:
    """Raises ConfigError: named compositions whose models no one engine holds."""
    reasons = {name: crossing(registry.named(name), families) for name in registry.compositions}
    problems = [f"compositions.{name}: {reason}." for name, reason in reasons.items() if reason is not None]
    if problems:
        raise ConfigError(problems)


def _check_models(
    configuration: Configuration,
    families: Sequence[Family],
    found: Mapping[str, Checkpoint],
    infos: Mapping[str, ModelInfo],
) -> None:
    """Raises ConfigError: models of any family that vLLM could not load under the file's options."""
    from motet.engines.vllm.loading import EngineArgsError, check_models

    problems: list[str] = []
    for family in families:
        models = {name: found[name] for name in family.models}
        try:
            check_models(models, {name: infos[name] for name in models}, configuration.settings.engine.engine_args)
        except EngineArgsError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _start_all(
    configuration: Configuration,
    families: Sequence[Family],
    found: Mapping[str, Checkpoint],
    infos: Mapping[str, ModelInfo],
    memory: Mapping[str, Mapping[str, Any]],
    log: Log,
) -> Engine:
    """One engine after the other: vLLM measures the free memory of a device while it starts.

    Raises:
        ConfigError: one did not start; those before it are ended.
    """
    from motet.engines.vllm.loading import start
    from motet.engines.vllm.memory import overriding_environment

    config = configuration.settings.engine
    engines: dict[str, VllmEngine] = {}
    if len(families) > 1 and (variable := overriding_environment()) is not None:
        log(f"{variable} is set: each of the {len(families)} engines takes that much, whatever the file says")
    with ExitStack() as started:
        for family in families:
            log(f"starting vLLM with {', '.join(family.models)}")
            try:
                engine = start(
                    {name: found[name] for name in family.models},
                    {name: infos[name] for name in family.models},
                    max_running=config.max_running,
                    engine_args=for_models(config.engine_args, family.models),
                    memory=memory[family.name],
                )
            except (RuntimeError, ValueError) as error:  # its own reasons stand in its log, which its processes write
                raise ConfigError([f"vLLM did not start with {', '.join(family.models)}: {error}"]) from error
            started.callback(engine.shutdown)
            engines[family.name] = engine
            log(memory_line(family.models, engine.capacity.bytes_per_token, engine.capacity.tokens))
        started.pop_all()
    return engines[families[0].name] if len(families) == 1 else Families(families, engines)


def memory_line(models: Sequence[str], bytes_per_token: int, tokens: int) -> str:
    """What the start-up log says of a family's memory."""
    whose = "its" if len(models) == 1 else "all of their"
    return (
        f"{', '.join(models)}: a token takes {bytes_per_token:,} bytes, {whose} keys and values; "
        f"the cache holds {tokens:,} tokens"
    )


def checkpoints(sources: Mapping[str, Source], log: Log) -> dict[str, Checkpoint]:
    """Name → where full weights are. Adapters are merged into their base and GGUF files are converted once, in the
    cache."""
    from motet.engines.vllm.loading import CACHE, Checkpoint

    found: dict[str, Checkpoint] = {}
    for name, source in sources.items():
        if gguf.is_gguf(source.path):
            log(f"converting {source.path} into a folder, which vLLM reads")
            found[name] = Checkpoint(str(converted_checkpoint(Path(source.path), CACHE.expanduser())))
        elif source.base is None:
            found[name] = Checkpoint(source.path, source.revision)
        else:
            log(f"merging the adapter of {name} into {source.base}")
            merged = merged_checkpoint(source, CACHE.expanduser())
            found[name] = Checkpoint(str(merged), tokenizer=source.tokenizer)
    return found


def converted_checkpoint(file: Path, cache: Path) -> Path:
    """A GGUF file as a folder with dequantised weights and the tokenizer; made where it is not there yet."""
    state = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    folder = cache / "converted" / digest.hexdigest()[:16]
    if not (folder / "config.json").is_file():
        partial = folder.with_suffix(".partial")
        model = load_weights(str(file), dtype="auto")
        model.save_pretrained(partial)
        read_tokenizer(str(file)).save_pretrained(partial)
        partial.rename(folder)
    return folder


def merged_checkpoint(source: Source, cache: Path) -> Path:
    """The folder of an adapter's base with the adapter merged into it; made where it is not there yet."""
    place = local(source.path, source.revision)  # of a hub id the snapshot, whose name is its commit
    files = sorted(place.glob("adapter_*"))
    base_name = f"{source.checkpoint}@{source.checkpoint_revision}"
    digest = hashlib.sha256(f"{MERGE} {base_name} {place.name}".encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = cache / "merged" / digest.hexdigest()[:16]
    if not (folder / "config.json").is_file():
        base = load_weights(source.checkpoint, source.checkpoint_revision, dtype="auto")
        partial = folder.with_suffix(".partial")
        merge_adapter(base, source).save_pretrained(partial)
        partial.rename(folder)
    return folder


def inspect(
    configuration: Configuration, sources: Mapping[str, Source]
) -> tuple[dict[str, Tokenizer], dict[str, ModelInfo], list[Family]]:
    """Tokenizers and facts of all models, and their families; no weights are read.

    Raises:
        ConfigError: files that cannot be read, settings that a composite cannot hold, families that do not fit.
    """
    engine = configuration.settings.engine
    unfit = [line for name, model in configuration.settings.models.items() for line in _unfit(name, model)]
    unfit += [
        f"models.{name}: only the engine kind 'torch' serves soft prompts: members of a composite read token ids."
        for name, source in sources.items()
        if source.backbone is not None
    ]
    read, unread = each_model(configuration, lambda name, model: read_model(name, model, sources[name], engine, "vllm"))
    problems = unfit + unread
    if "speculation" in engine.model_fields_set:
        problems.append("engine.speculation: it is the embedded engine's; vLLM takes engine_args.speculative_config.")
    if engine.restart:
        problems.append("engine.restart: it is the embedded engine's; of vLLM the process is started again.")
    tokenizers = {name: tokenizer for name, (tokenizer, _) in read.items()}
    infos = {name: info for name, (_, info) in read.items()}
    vocabularies = {name: read_vocabulary(tokenizers[name].hf, info.vocab_size) for name, info in infos.items()}
    families, misfits = group(configuration.settings.engine.families, vocabularies, infos)
    if problems or misfits:
        raise ConfigError([*problems, *misfits])
    return tokenizers, infos, families


def _unfit(name: str, model: ModelConfig) -> list[str]:
    problems: list[str] = []
    if model.device is not None:
        problems.append(f"models.{name}.device: vLLM places all members of a composite itself.")
    if model.quantize is not None:
        problems.append(
            f"models.{name}.quantize: it is the embedded engine's; vLLM takes engine.engine_args.quantization (fp8, "
            "say), or checkpoints that are quantised already."
        )
    if model.draft_quantize is not None:
        problems.append(
            f"models.{name}.draft_quantize: it is the embedded engine's; vLLM takes engine_args.speculative_config."
        )
    if model.vocab != "exact":
        doing = "cuts" if model.vocab == "cut" else "maps"
        problems.append(
            f"models.{name}.vocab: a composite has one vocabulary; only the engine kind 'torch' {doing} members."
        )
    return problems
