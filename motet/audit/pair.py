"""The expert and its untuned partner, loaded side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from motet.audit.settings import AuditError
from motet.composers.vocabulary import VocabularyMismatch, read_vocabulary, shared_width
from motet.experts.bundle import BundleError, ExpertBundle, read_bundle
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.fit import Known, mismatch
from motet.models.checkpoint import load_weights
from motet.models.ends import end_token_ids, model_ends
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import merge_adapter
from motet.operator.settings import ModelConfig
from motet.operator.sources import Source, find_source


@dataclass(frozen=True)
class Pair:
    """Two models over one vocabulary. `note`: what the expert's bundle says against this partner, if anything."""

    expert: PreTrainedModel
    partner: PreTrainedModel
    tokenizer: Tokenizer
    vocab_size: int  # the shared width: ids beyond it are cut off
    bundle: ExpertBundle | None = None
    note: str | None = None

    @property
    def eos(self) -> frozenset[int]:
        return frozenset((*model_ends(self.expert), *end_token_ids(self.tokenizer.hf)))

    @property
    def max_length(self) -> int:
        """Positions that both models have."""
        configs = [cast(Any, model.config).get_text_config() for model in (self.expert, self.partner)]
        return min(int(getattr(config, "max_position_embeddings", None) or 1 << 20) for config in configs)


def find_partner(expert: Path) -> Path:
    """What an expert was before: the partner that its bundle names, relative to the bundle, its folder or the working
    folder; an adapter's base where that has the partner's weights, or where the bundle names no partner.

    Raises:
        AuditError: the bundle cannot be read, there is nothing to go by, or it is not on this machine.
    """
    try:
        bundle = read_bundle(expert)
    except BundleError as error:
        raise AuditError(error.problems) from error
    partner = bundle.partner if bundle is not None else None
    if partner is not None:
        places = [place / partner.path for place in (expert, expert.parent, Path.cwd())]
        found = next((place for place in places if place.is_dir()), None)
        if found is not None:
            return found
    base = _adapter_base(expert)
    if base is not None and (partner is None or partner.weights == weights_fingerprint(base)):
        return base
    known = "it does not say so" if partner is None else f"{partner.path!r} was not found"
    raise AuditError([f"what {expert} was before its training is not known: {known}. Name it with --partner"])


def _adapter_base(expert: Path) -> Path | None:
    try:
        base = _source(expert).base
    except (OSError, ValueError):
        return None
    return Path(base) if base is not None and Path(base).is_dir() else None


def _source(path: Path) -> Source:
    return find_source(ModelConfig(path=str(path.resolve())), path.resolve().parent)


def load_pair(expert: Path, partner: Path, device: str = "auto") -> Pair:
    """Both models, adapters merged into their bases, in float32 on the CPU and in their own type elsewhere.

    Raises:
        AuditError: a model that cannot be loaded; vocabularies that differ.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    problems: list[str] = []
    loaded: list[tuple[PreTrainedModel, Tokenizer]] = []
    for path in (expert, partner):
        try:
            loaded.append(_load(path, device))
        except Exception as error:  # transformers and peft raise whatever their parsers raise
            problems.append(f"{path} cannot be loaded: {error}")
    if problems:
        raise AuditError(problems)
    width = _shared_width((expert, partner), loaded)
    bundle = read_bundle(expert)
    note = mismatch(bundle, Known(weights=weights_fingerprint(partner))) if bundle is not None else None
    return Pair(loaded[0][0], loaded[1][0], loaded[0][1], width, bundle, note)


def _load(path: Path, device: str) -> tuple[PreTrainedModel, Tokenizer]:
    if not path.is_dir():
        raise OSError("it is no folder")
    source = _source(path)
    dtype = "float32" if device == "cpu" else "auto"
    model = load_weights(source.checkpoint, source.checkpoint_revision, dtype=dtype)
    if source.base is not None:
        model = merge_adapter(model, source)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model.eval().requires_grad_(False), _tokenizer(source)


def _tokenizer(source: Source) -> Tokenizer:
    return Tokenizer.load(*source.tokenizer)


def _shared_width(paths: Sequence[Path], loaded: Sequence[tuple[PreTrainedModel, Tokenizer]]) -> int:
    widths = [int(cast(Any, model.config).get_text_config().vocab_size) for model, _ in loaded]
    members = {
        str(path): read_vocabulary(tokenizer.hf, width)
        for path, (_, tokenizer), width in zip(paths, loaded, widths, strict=True)
    }
    try:
        return shared_width(members)
    except VocabularyMismatch as mismatched:
        raise AuditError([str(mismatched)]) from mismatched
