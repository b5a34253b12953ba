"""What can be known about an operator's file before any weights are read: what `config validate` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from motet.composers.vocabulary import vocabulary_size
from motet.engines.base import ModelInfo
from motet.models import memory, prequantised
from motet.models.checkpoint import local, read_config
from motet.models.memory import GIB, gib
from motet.models.tokenizer import Tokenizer
from motet.operator.file import ConfigError, Configuration
from motet.operator.registry import Registry
from motet.operator.settings import EngineConfig, ModelConfig
from motet.operator.sources import Source, file_problems, find_source

SMALLEST_CONTEXT = 64  # tokens: what an arena of the embedded engine takes for the shortest request


@dataclass(frozen=True, slots=True)
class Prepared:
    """`registry` knows the models as their configurations describe them; `warnings` are for the operator."""

    sources: Mapping[str, Source]
    tokenizers: Mapping[str, Tokenizer]
    registry: Registry
    warnings: list[str]


def prepare(configuration: Configuration) -> Prepared:
    """Reads all models but their weights.

    Raises:
        ConfigError: everything that is wrong with their files; then with what they are composed to; then with memory.
    """
    from motet.operator.loading import registry_of

    sources, tokenizers, infos, problems = _read_all(configuration)
    if problems:
        raise ConfigError(problems)
    registry = registry_of(configuration, sources, tokenizers, infos)
    problems = memory_problems(configuration.settings.engine, sources, infos)
    if problems:
        raise ConfigError(problems)
    warnings = _endless(infos) + _memory_warnings(configuration.settings.engine, sources, infos)
    return Prepared(sources, tokenizers, registry, warnings)


def _read_all(
    configuration: Configuration,
) -> tuple[dict[str, Source], dict[str, Tokenizer], dict[str, ModelInfo], list[str]]:
    engine = configuration.settings.engine
    sources: dict[str, Source] = {}
    tokenizers: dict[str, Tokenizer] = {}
    infos: dict[str, ModelInfo] = {}
    problems: list[str] = []
    for name, model in configuration.settings.models.items():
        try:
            sources[name] = find_source(model, configuration.folder)
            tokenizers[name], infos[name] = read_model(name, model, sources[name], engine, device_of(model, engine))
        except ConfigError as error:
            problems += error.problems
        except (OSError, ValueError) as error:
            problems.append(f"models.{name}: {error}")
    return sources, tokenizers, infos, problems


def device_of(model: ModelConfig, engine: EngineConfig) -> str:
    """Where a model of the embedded engine is computed: `auto` is CUDA where there is one.

    Raises:
        ValueError: a CUDA device that this machine, or this build of torch, does not have.
    """
    device = model.device or engine.device
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    index = torch.device(device).index or 0
    if index >= count:
        raise ValueError(f"device: torch sees {count} CUDA devices here, so there is no {device!r}. Nearest: 'auto'.")
    return f"cuda:{index}"


def read_model(
    name: str, model: ModelConfig, source: Source, engine: EngineConfig, device: str
) -> tuple[Tokenizer, ModelInfo]:
    """A model's tokenizer and what its configuration says; no weights are read.

    Args:
        device: "cpu", "cuda…", or "vllm" for a model that vLLM places, which knows its own quantisations.

    Raises:
        ConfigError: everything that is wrong with its files.
        OSError, ValueError: a tokenizer or a configuration that cannot be read or do not fit together.
    """
    from motet.engines.facts import read_facts
    from motet.operator.loading import check_width, load_tokenizer, own_ends

    found = file_problems(source)
    if found:
        raise ConfigError([f"models.{name}: {problem}." for problem in found])
    config = read_config(source.checkpoint, source.checkpoint_revision)
    method = prequantised.method_of(config)
    if model.quantize is not None and method is not None:
        raise ValueError(f"quantize: the checkpoint is already quantised ({method}); leave it out.")
    unloadable = None if device == "vllm" else prequantised.problem(config, device)
    if unloadable:
        raise ValueError(f"{unloadable}.")
    tokenizer = load_tokenizer(*source.tokenizer)
    vocab_size = vocabulary_size(tokenizer.hf)
    check_width(source, vocab_size)
    info = read_facts(
        name,
        source.checkpoint,
        source.checkpoint_revision,
        ends=own_ends(source, tokenizer),
        dtype=model.dtype or engine.dtype,
        device=device,
        vocab_size=vocab_size,
        max_model_len=engine.max_model_len,
    )
    return tokenizer, replace(info, quantization=model.quantize)


def memory_problems(engine: EngineConfig, sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[str]:
    """What cannot fit: weights and the shortest request into each device's memory, that request into the KV budget.

    The budget itself is taken as requests need it: where it might not fit, `_memory_warnings` says so.
    """
    budget = int(engine.kv_cache_gib * GIB)
    largest = max(infos.values(), key=lambda info: info.kv_bytes_per_token)
    least = SMALLEST_CONTEXT * largest.kv_bytes_per_token
    if budget < least:
        return [
            f"engine.kv_cache_gib: {engine.kv_cache_gib:g} GiB hold no request: {largest.name!r} needs "
            f"{largest.kv_bytes_per_token:,} bytes for each of {SMALLEST_CONTEXT} tokens, {least / GIB:.3g} GiB."
        ]
    return [
        f"engine: the models do not fit into {demand.sentence(budget)}."
        for demand in _demands(sources, infos)
        if demand.weights + least > demand.free or budget > demand.free
    ]


def _memory_warnings(engine: EngineConfig, sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[str]:
    """What would not fit if requests took the whole KV budget."""
    budget = int(engine.kv_cache_gib * GIB)
    return [
        f"engine: under load the models may not fit into {demand.sentence(budget)}. Nearest: a smaller kv_cache_gib."
        for demand in _demands(sources, infos)
        if demand.weights + budget > demand.free
    ]


@dataclass(frozen=True, slots=True)
class _Demand:
    """What the models of one device take, and what it has free, in bytes."""

    device: str
    sizes: Mapping[str, int]
    free: int

    @property
    def weights(self) -> int:
        return sum(self.sizes.values())

    def sentence(self, budget: int) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.sizes.items())
        return (
            f"the {gib(self.free)} that {self.device} has free: {parts} of weights and {gib(budget)} of keys and "
            f"values (kv_cache_gib) are {gib(self.weights + budget)}"
        )


def _demands(sources: Mapping[str, Source], infos: Mapping[str, ModelInfo]) -> list[_Demand]:
    sizes = {name: weight_bytes(sources[name], info) for name, info in infos.items()}
    return [
        _Demand(
            device,
            {name: size for name, size in sizes.items() if infos[name].device == device},
            memory.available_bytes(device),
        )
        for device in dict.fromkeys(info.device for info in infos.values())
    ]


def weight_bytes(source: Source, info: ModelInfo) -> int:
    """Bytes of a model's weights once they are loaded."""
    from motet.engines.facts import DTYPE_BYTES, shapes_of
    from motet.engines.torch.quantization import weight_bytes as quantized_bytes

    itemsize = DTYPE_BYTES.get(info.dtype, 4)
    if info.quantization is not None:
        return quantized_bytes(shapes_of(_config(source)), info.quantization, itemsize)
    place = local(source.checkpoint, source.checkpoint_revision)
    if prequantised.method_of(_config(source)) is not None:
        return sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))
    return info.num_parameters * itemsize


def _config(source: Source) -> Any:
    return read_config(source.checkpoint, source.checkpoint_revision)


def _endless(infos: Mapping[str, ModelInfo]) -> list[str]:
    return [
        f"models.{name}: neither its configuration nor its tokenizer names a token that ends an answer: answers run on "
        "until max_tokens or a stop sequence."
        for name, info in infos.items()
        if not info.eos_token_ids
    ]
