"""What can be known about an operator's file before any weights are read: what `config validate` says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from motet.composers.spec import CompositionError
from motet.composers.vocabulary import fingerprint, read_vocabulary, vocabulary_size
from motet.engines.drafts import NGRAM
from motet.experts.fit import Known
from motet.models import prequantised
from motet.models.checkpoint import read_config, read_generation_config
from motet.models.ends import end_token_ids
from motet.models.facts import DTYPE_BYTES
from motet.models.info import ModelInfo
from motet.models.thoughts import ThinkTags
from motet.models.tokenizer import Tokenizer
from motet.models.tool_formats import TOOL_FORMATS
from motet.operator.adapters import num_tokens
from motet.operator.backbones import with_backbone
from motet.operator.experts import read_experts
from motet.operator.file import ConfigError, Configuration
from motet.operator.gates import load_gates
from motet.operator.loaded import LoadedModel, Template
from motet.operator.memory import memory_problems, memory_warnings
from motet.operator.registry import Registry
from motet.operator.settings import EngineConfig, ModelConfig, source_of
from motet.operator.sources import Source, each_model, file_problems, find_source
from motet.operator.translation import maps_of


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
    sources, tokenizers, infos, problems, merged = _read_all(configuration)
    if problems:
        raise ConfigError(problems)
    registry = registry_of(configuration, sources, tokenizers, infos)
    problems = memory_problems(configuration.settings.engine, sources, infos)
    if problems:
        raise ConfigError(problems)
    registry.map_all()
    warnings = merged + _endless(infos) + _odd_prompts(registry.members) + _approximate(registry)
    warnings += _unused_drafts(configuration.settings.engine, infos)
    warnings += memory_warnings(configuration.settings.engine, sources, infos)
    return Prepared(sources, tokenizers, registry, warnings)


def _read_all(
    configuration: Configuration,
) -> tuple[dict[str, Source], dict[str, Tokenizer], dict[str, ModelInfo], list[str], list[str]]:
    """By the models' names; what is wrong with some; and which adapters are merged though their base is a model of the
    file."""
    engine, models = configuration.settings.engine, configuration.settings.models

    merged: list[str] = []

    def read(name: str, model: ModelConfig) -> tuple[Source, Tokenizer, ModelInfo]:
        found = find_source(model, configuration.folder, models)
        source, reason = with_backbone(name, found, configuration)
        if reason is not None:
            merged.append(f"models.{name}: it is merged into a copy of its base's weights: {reason}.")
        behind = computing(model, source, models)
        return source, *read_model(name, behind, source, engine, device_of(behind, engine))

    found, problems = each_model(configuration, read)
    sources = {name: source for name, (source, _, _) in found.items()}
    tokenizers = {name: tokenizer for name, (_, tokenizer, _) in found.items()}
    problems += _unlike_tokenizers(sources, tokenizers)
    return sources, tokenizers, {name: info for name, (_, _, info) in found.items()}, problems, merged


def computing(model: ModelConfig, source: Source, models: Mapping[str, ModelConfig]) -> ModelConfig:
    """Whose weights compute a model: its own, or those of the model beside or in front of which it stands."""
    return model if source.backbone is None else models[source.backbone]


def _unlike_tokenizers(sources: Mapping[str, Source], tokenizers: Mapping[str, Tokenizer]) -> list[str]:
    """Soft prompts with tokenizers of their own whose ids mean other tokens to the model that computes them."""
    prompts = {name: source for name, source in sources.items() if source.virtual_tokens}
    pairs = ((name, source.backbone) for name, source in prompts.items() if source.backbone in tokenizers)
    return [
        f"models.{name}: its tokenizer is not that of {behind!r}, in front of which it stands."
        for name, behind in pairs
        if fingerprint(tokenizers[name].hf) != fingerprint(tokenizers[str(behind)].hf)
    ]


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
        model: whose settings the weights have (see `computing`).
        device: "cpu", "cuda…", or "vllm" for a model that vLLM places, which knows its own quantisations.

    Raises:
        ConfigError: everything that is wrong with its files.
        OSError, ValueError: a tokenizer or a configuration that cannot be read or do not fit together.
    """
    from motet.models.facts import read_facts

    found = file_problems(source)
    if found:
        raise ConfigError([f"models.{name}: {problem}." for problem in found])
    config = read_config(source.checkpoint, source.checkpoint_revision)
    method = prequantised.method_of(config)
    if model.quantize is not None and method is not None:
        raise ValueError(f"quantize: the checkpoint is already quantised ({method}); leave it out.")
    if model.draft_quantize is not None and (stored := method or model.quantize) is not None:
        raise ValueError(f"draft_quantize: its own weights are quantised already ({stored}); leave it out.")
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
    length = info.max_model_len - source.virtual_tokens
    if length < 1:
        raise ValueError(f"its {source.virtual_tokens} virtual tokens leave no room in {info.max_model_len}.")
    return tokenizer, replace(
        info,
        quantization=model.quantize,
        draft_quantization=model.draft_quantize,
        max_model_len=length,
        backbone=source.backbone,
        virtual_tokens=source.virtual_tokens,
    )


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
    merged = source.base is not None and source.backbone is None
    if width < vocab_size and merged:  # tokens that were added when the adapter was trained
        width = num_tokens(source) or width
    if width < vocab_size:
        raise ValueError(f"the model has {width} tokens, but its tokenizer has ids up to {vocab_size - 1}.")


def registry_of(
    configuration: Configuration,
    sources: Mapping[str, Source],
    tokenizers: Mapping[str, Tokenizer],
    infos: Mapping[str, ModelInfo],
) -> Registry:
    """The names that requests may use, gates with their weights. Raises ConfigError: gates that cannot be used; and as
    `read_experts` and `check` do."""
    experts = read_experts(sources, tokenizers)
    members = {
        name: _loaded(name, info, tokenizers[name], experts[name], configuration) for name, info in infos.items()
    }
    gates, problems = load_gates(configuration.settings.gates, configuration.folder)
    if problems:
        raise ConfigError(problems)
    registry = Registry(members, configuration.compositions, int(time.time()), configuration.gated, gates)
    check(registry, configuration)
    return registry


def _loaded(
    name: str, info: ModelInfo, tokenizer: Tokenizer, expert: Known, configuration: Configuration
) -> LoadedModel:
    model = configuration.settings.models[name]
    template: Template = model.template or ("chat" if tokenizer.has_chat_template else "plain")
    source = Path(source_of(model, configuration.folder)).name if Path(model.path).is_absolute() else model.path
    cut, is_translated = model.vocab == "cut", model.vocab == "map"
    vocabulary = read_vocabulary(tokenizer.hf, info.vocab_size, cut=cut, translated=is_translated)
    if expert.bundle is not None and expert.bundle.head is not None:
        head = expert.bundle.head
        info = replace(info, head=head.kind, threshold=head.threshold, clusters=head.clusters or ())
    return LoadedModel(
        info,
        tokenizer,
        vocabulary,
        template,
        source,
        expert.bundle,
        expert.weights,
        model.check_expert,
        None if model.tool_call_parser is None else TOOL_FORMATS[model.tool_call_parser],
        model.describe_tools,
        model.close_json,
        ThinkTags(*model.think_tags) if isinstance(model.think_tags, tuple) else model.think_tags,
    )


def check(registry: Registry, configuration: Configuration) -> None:
    """Raises ConfigError: templates that do not exist, named compositions that cannot be built."""
    problems = [
        f"models.{name}.template: the model has no chat template."
        for name, member in registry.members.items()
        if member.template == "chat" and not member.tokenizer.has_chat_template
    ]
    problems += _composition_problems(registry, (*registry.compositions, *registry.gated))
    if problems:
        raise ConfigError(problems)


def _composition_problems(registry: Registry, compositions: Sequence[str]) -> list[str]:
    problems: list[str] = []
    for name in compositions:
        try:
            registry.card(name)
        except CompositionError as error:
            problems.append(f"compositions.{name}: {error}")
    return problems


def _approximate(registry: Registry) -> list[str]:
    """Named compositions in which a member has other tokens than the base, and not the same under other ids."""
    return [
        f"compositions.{name}: {model!r} has {tokens.num_shared:,} of the {len(tokens.ids):,} tokens of its base"
        + (", and other tokens that end an answer" if tokens.own_ends else "")
        + ": it is composed approximately, and texts cannot be scored."
        for name in registry.compositions
        for model, tokens in maps_of(registry.named(name)).items()
        if not tokens.is_exact
    ]


def _odd_prompts(members: Mapping[str, LoadedModel]) -> list[str]:
    """Models that read something else than what they are asked."""
    told: list[str] = []
    for name, member in members.items():
        if end := member.tokenizer.appended:
            said = (
                "so that answers to text prompts begin behind it; add_special_tokens: false in a request leaves it out."
            )
            told.append(f"models.{name}: its tokenizer sets {end!r} behind every text, {said}")
        if member.template == "chat" and member.tokenizer.template.loses_questions:
            told.append(f"models.{name}: its chat template shows nothing of what a user says.")
    return told


def _unused_drafts(engine: EngineConfig, infos: Mapping[str, ModelInfo]) -> list[str]:
    """Models that have weights to guess with, where nothing guesses unless a request asks."""
    own = {name: info for name, info in infos.items() if info.backbone is None}
    asked = {name: info for name, info in own.items() if info.draft_quantization is not None}
    if engine.speculation == "auto":
        why = "`engine.speculation: auto` makes no guesses in"
        narrow = {name: info.dtype for name, info in asked.items() if DTYPE_BYTES[info.dtype] < DTYPE_BYTES["float32"]}
        reasons = {name: f"{why} {dtype}" for name, dtype in narrow.items()}
    elif engine.speculation == "off":
        reasons = dict.fromkeys(asked, "`engine.speculation` is off")
    else:
        is_text = engine.speculation.draft == NGRAM
        reasons = dict.fromkeys(asked if is_text else (), "`engine.speculation` guesses from the text alone")
    return [
        f"models.{name}.draft_quantize: {reason}: only requests that ask are guessed for. `engine.speculation: {{}}` "
        "guesses for all."
        for name, reason in reasons.items()
    ]


def _endless(infos: Mapping[str, ModelInfo]) -> list[str]:
    return [
        f"models.{name}: neither its configuration nor its tokenizer names a token that ends an answer: answers run on "
        "until max_tokens or a stop sequence."
        for name, info in infos.items()
        if not info.eos_token_ids
    ]
