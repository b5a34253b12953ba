"""An operator's file to begin with: the models that lie in some folders, and the compositions that fit them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from motet.composers import vocabulary
from motet.composers.strategies import STRATEGIES
from motet.experts.bundle import ExpertBundle
from motet.experts.fit import Known, mismatch
from motet.models.gguf import is_gguf
from motet.models.info import ModelInfo
from motet.models.tokenizer import Tokenizer
from motet.operator.experts import read_experts
from motet.operator.file import MODEL_FILES, ConfigError, Configuration
from motet.operator.preflight import computing, device_of, read_model
from motet.operator.settings import ModelConfig, Settings
from motet.operator.sources import Source, each_model, file_problems, find_source

MAX_DEPTH = 3  # folders below a named one that are searched
SMALLER = 2  # an amateur has at most so small a share of the parameters: one in two
HEAD = """\
# The models and compositions that `motet serve` offers. What may stand here: docs/operator-file.md, and
#   motet config validate FILE    # everything that is wrong with it
#   motet models FILE             # sizes, contexts, who is used where
#   motet serve FILE
"""
ENGINE = """
engine:
  dtype: auto          # as each checkpoint is stored; bfloat16 or float32 for all
  kv_cache_gib: 1      # memory for keys and values, beside the weights
"""
APART = """\
# Models can be combined where they share a vocabulary, token by token. Here they are apart: {families}.
"""
ALONE = """\
# One model alone, sharpened against its own early layers:
#   {name}: {{strategy: layer_contrast, base: {base}}}
"""
PAIRS = """\
# What folders do not tell: which small model is a tuned version of which. With such a pair, steer a larger one:
#   {name}:
#     strategy: proxy_tuning
#     base: {base}
#     expert: TUNED-SMALL-MODEL
#     antiexpert: THE-SAME-BEFORE-TUNING
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was found: `path` as the file writes it."""

    name: str
    path: str
    info: ModelInfo
    fingerprint: str
    known: Known
    is_chat: bool

    @property
    def size(self) -> int:
        """Parameters; a soft prompt has none of its own that count."""
        return self.info.num_parameters if self.info.backbone is None else 0

    @property
    def card(self) -> ExpertBundle | None:
        """What it was made for, None of a model that may stand anywhere."""
        bundle = self.known.bundle
        return None if bundle is None or bundle.strategy is None else bundle


@dataclass(frozen=True, slots=True)
class Scaffold:
    """`left_out`: what was found and cannot be served, one sentence each."""

    models: Sequence[Model]
    compositions: Mapping[str, dict[str, Any]]
    left_out: Sequence[str]

    def text(self) -> str:
        """The operator's file."""
        parts = [HEAD, "\nmodels:\n", *map(_entry, self.models), ENGINE, "\ncompositions:"]
        parts.append("\n" if self.compositions else " {}  # take the braces away with the first one\n")
        parts += [] if self.compositions else [_indented(text) for text in self._alone()]
        parts += [_indented(yaml.safe_dump({name: tree}, sort_keys=False)) for name, tree in self.compositions.items()]
        if all(model.card is None for model in self.models):
            largest = max(self.models, key=lambda model: model.size)
            parts.append(_indented(PAIRS.format(name=f"{largest.name}-steered", base=largest.name)))
        return "".join(parts)

    def _alone(self) -> Iterator[str]:
        """Why nothing is combined, and what one model can do."""
        families: dict[str, list[str]] = {}
        for model in self.models:
            families.setdefault(model.fingerprint, []).append(model.name)
        if len(families) > 1:
            yield APART.format(families="; ".join(" and ".join(names) for names in families.values()))
        first = next(model.name for model in self.models if model.info.backbone is None)
        yield ALONE.format(name=f"{first}-dola", base=first)


def scaffold(places: Iterable[Path], folder: Path) -> Scaffold:
    """What a file in `folder` may say about the models in these places; reads no weights.

    Args:
        places: model folders, GGUF files, or folders that hold some.

    Raises:
        ConfigError: a place that does not exist, or no model anywhere.
    """
    paths = _paths(list(places), folder)
    settings = Settings.model_validate({"models": {name: {"path": path} for name, path in paths.items()}})
    configuration = Configuration(settings, {}, folder / "models.yaml", {})  # whose folder alone is read
    found, left_out = each_model(configuration, lambda name, model: _read(name, model, configuration))
    sources = {name: source for name, (source, _, _) in found.items()}
    experts, unread = _experts(sources, {name: tokenizer for name, (_, tokenizer, _) in found.items()})
    models = [
        Model(name, paths[name], info, vocabulary.fingerprint(tokenizer.hf), experts[name], tokenizer.has_chat_template)
        for name, (_, tokenizer, info) in found.items()
    ]
    if not models:
        raise ConfigError(left_out)
    return Scaffold(models, dict(_compositions(models)), [*left_out, *unread])


def _read(name: str, model: ModelConfig, configuration: Configuration) -> tuple[Source, Tokenizer, ModelInfo]:
    """Raises ConfigError, ValueError, OSError: no model that could be served."""
    engine, models = configuration.settings.engine, configuration.settings.models
    source = find_source(model, configuration.folder, models)
    if problems := file_problems(source):
        raise ConfigError([f"models.{name}: {problem}" for problem in problems])
    behind = computing(model, source, models)
    return source, *read_model(name, behind, source, engine, device_of(behind, engine))


def _experts(
    sources: Mapping[str, Source], tokenizers: Mapping[str, Tokenizer]
) -> tuple[dict[str, Known], Sequence[str]]:
    """What the models' bundles say; a bundle that does not fit its model says nothing, and why is told."""
    try:
        return read_experts(sources, tokenizers), ()
    except ConfigError as error:
        return {name: Known() for name in sources}, error.problems


def _paths(places: Sequence[Path], folder: Path) -> dict[str, str]:
    """Name → path of everything that looks like a model, relative to the file where it lies below or beside it."""
    missing = [f"{place} does not exist." for place in places if not place.expanduser().exists()]
    if missing:
        raise ConfigError(missing)
    paths: dict[str, str] = {}
    for place in places:
        for model in _models_in(place.expanduser(), MAX_DEPTH):
            paths.setdefault(_free_name(model, paths), _written(model, folder))
    if not paths:
        looked = ", ".join(map(str, places))
        raise ConfigError([f"no model lies in {looked}: a folder with {' or '.join(MODEL_FILES)}, or a .gguf file."])
    return paths


def _models_in(place: Path, depth: int) -> Iterator[Path]:
    """Model folders and GGUF files, in order of their names; what lies inside a model's folder is the model's own."""
    if place.is_file():
        if is_gguf(place):
            yield place
        return
    if any((place / file).is_file() for file in MODEL_FILES):
        yield place
    elif depth:
        for inner in sorted(place.iterdir()):
            if not inner.name.startswith("."):
                yield from _models_in(inner, depth - 1)


def _free_name(model: Path, taken: Mapping[str, str]) -> str:
    """The folder's or file's own name, made fit for requests; a file's whole name, then a number, where it is taken."""
    whole = _fit(model.resolve().name)
    name = _fit(model.resolve().stem) if model.is_file() else whole
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, whole, *numbered) if free not in taken)


def _fit(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _written(model: Path, folder: Path) -> str:
    """Relative paths move with the file; one that climbs far up says less than an absolute one."""
    relative = os.path.relpath(model.resolve(), folder.resolve())
    return relative if Path(relative).parts[:2] != ("..", "..") else str(model.resolve())


def _compositions(models: Sequence[Model]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What bundles recommend; and the larger models against the smallest of their vocabulary."""
    for model in models:
        if model.card is not None:
            yield from _recommended(model, model.card, models)
    plain = [model for model in models if model.card is None and model.info.backbone is None]
    for model in plain:
        amateur = min(_partners(model, plain), key=lambda other: other.size, default=None)
        if amateur is not None and SMALLER * amateur.size <= model.size:
            tree = {"strategy": "contrastive", "base": model.name, "amateur": amateur.name}
            yield f"{model.name}-contrastive", tree


def _partners(model: Model, models: Sequence[Model]) -> list[Model]:
    """The others of its vocabulary."""
    return [other for other in models if other is not model and other.fingerprint == model.fingerprint]


def _recommended(model: Model, bundle: ExpertBundle, models: Sequence[Model]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The composition that an expert was made for, where its partner and a larger base are here."""
    if bundle.strategy is None or STRATEGIES[bundle.strategy].partners is None:
        return
    expert, other = STRATEGIES[bundle.strategy].partners or ("", "")
    others = _partners(model, models)
    partner = next((one for one in others if _is_partner(bundle, one)), None)
    plain = [one for one in others if one.card is None and one.info.backbone is None]
    if bundle.role != expert or partner is None or not plain:
        return
    roles = {"base": max(plain, key=lambda one: one.size).name, expert: model.name, other: partner.name}
    strength = STRATEGIES[bundle.strategy].strength
    weight = {} if strength is None or bundle.weight is None else {strength: bundle.weight}
    what = bundle.strategy if roles["base"] == model.name else model.name
    yield f"{roles['base']}-{what}", {"strategy": bundle.strategy, **roles, **weight}


def _is_partner(bundle: ExpertBundle, other: Model) -> bool:
    """Known by its weights, not merely not known to be another one."""
    weights = bundle.partner.weights if bundle.partner else None
    return weights is not None and other.known.weights == weights and mismatch(bundle, other.known) is None


def _entry(model: Model) -> str:
    info = model.info
    weights = f"{_short(model.size)} parameters, {info.dtype}"
    prompt = f"a soft prompt of {info.virtual_tokens} virtual tokens in front of {info.backbone}"
    facts = f"{weights if info.backbone is None else prompt}, context {info.max_model_len:,}"
    template = "chat template" if model.is_chat else "no chat template: messages are read as plain text"
    entry = yaml.safe_dump({model.name: {"path": model.path}}, sort_keys=False, width=1000)
    return _indented(f"# {facts}, {template}\n{entry}")


def _short(count: int) -> str:
    """1,543,714,304 → 1.5 G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
