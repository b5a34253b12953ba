"""The expert and its untuned partner, loaded side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from motet.audit.settings import AuditError
from motet.composers.vocabulary import VocabularyMismatch, read_vocabulary, shared_width
from motet.engines.torch import Member
from motet.experts.bundle import BundleError, ExpertBundle, read_bundle
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.fit import Known, mismatch
from motet.models.checkpoint import load_weights, read_config
from motet.models.tokenizer import Tokenizer
from motet.operator.adapters import merge_adapter
from motet.operator.loading import load_model
from motet.operator.settings import EngineConfig, ModelConfig
from motet.operator.sources import Source, find_source


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from, so that it can be loaded again."""

    name: str
    source: Source
    tokenizer: Tokenizer
    device: str

    def member(self, weights: PreTrainedModel | None = None) -> Member:
        """The model for the engine, in float32 on the CPU and in its own type elsewhere; with the weights of a copy
        that was trained, where these are given, in float32."""
        plain = self.device == "cpu" or weights is not None
        config = EngineConfig(device=cast(Any, self.device), dtype="float32" if plain else "auto")
        model = ModelConfig(path=self.source.path)
        return load_model(self.name, self.source, model, config, self.tokenizer, weights)

    def trainable(self) -> PreTrainedModel:
        """A copy in float32 that is no part of an engine."""
        checkpoint, revision = self.source.checkpoint, self.source.checkpoint_revision
        model = load_weights(checkpoint, revision, dtype=torch.float32, attn_implementation="eager")
        if self.source.base is not None:
            model = merge_adapter(model, self.source)
        return model.float().to(self.device).eval().requires_grad_(False)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pair:
    """Two models over one vocabulary. `note`: what the expert's bundle says against this partner, if anything."""

    expert: Member
    partner: Member
    tokenizer: Tokenizer
    vocab_size: int  # the shared width: ids beyond it are cut off
    bundle: ExpertBundle | None = None
    note: str | None = None
    partner_origin: Origin | None = None

    def learner(self) -> PreTrainedModel:
        """A copy of the partner, to be trained."""
        assert self.partner_origin is not None, "the pair was loaded from somewhere"
        return self.partner_origin.trainable()

    def learned(self, learner: PreTrainedModel) -> Member:
        """The partner with the weights that a copy has learnt."""
        assert self.partner_origin is not None, "the pair was loaded from somewhere"
        return self.partner_origin.member(copy.deepcopy(learner))

    def keep(self, learner: PreTrainedModel, folder: Path) -> None:
        """Writes a copy, in float32, as a checkpoint that can be served or be the partner of another audit.

        Raises:
            AuditError: the folder holds something, or cannot be written.
        """
        check_empty(folder)
        try:
            learner.save_pretrained(folder)
            self.tokenizer.hf.save_pretrained(str(folder))
        except OSError as error:
            raise AuditError([f"{folder} cannot be written: {error}"]) from error

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end the expert's answers, and the partner's too."""
        return self.expert.info.eos_token_ids

    @property
    def max_length(self) -> int:
        """Positions that both models have."""
        return min(self.expert.info.max_model_len, self.partner.info.max_model_len)


def check_empty(folder: Path) -> None:
    """Raises AuditError: there is something that a checkpoint would be written over."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AuditError([f"{folder} is there and holds something: name another folder"])


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
    """Both models for the embedded engine, adapters merged into their bases.

    Raises:
        AuditError: a model that cannot be loaded; vocabularies that differ.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    problems: list[str] = []
    loaded: list[tuple[Member, Origin]] = []
    for name, path in (("expert", expert), ("partner", partner)):
        try:
            origin = _origin(name, path, device)
            loaded.append((origin.member(), origin))
        except Exception as error:  # transformers and peft raise whatever their parsers raise
            problems.append(f"{path} cannot be loaded: {error}")
    if problems:
        raise AuditError(problems)
    (ours, first), (theirs, second) = loaded
    width = _shared_width({str(path): one for path, one in zip((expert, partner), loaded, strict=True)})
    bundle = read_bundle(expert)
    note = mismatch(bundle, Known(weights=weights_fingerprint(partner))) if bundle is not None else None
    return Pair(ours, theirs, first.tokenizer, width, bundle, note, second)


def _origin(name: str, path: Path, device: str) -> Origin:
    if not path.is_dir():
        raise OSError("it is no folder")
    source = _source(path)
    read_config(source.checkpoint, source.checkpoint_revision)  # says best what is wrong with a folder
    return Origin(name, source, Tokenizer.load(*source.tokenizer), device)


def _shared_width(loaded: Mapping[str, tuple[Member, Origin]]) -> int:
    members = {
        path: read_vocabulary(origin.tokenizer.hf, int(cast(Any, member.model.config).get_text_config().vocab_size))
        for path, (member, origin) in loaded.items()
    }
    try:
        return shared_width(members)
    except VocabularyMismatch as mismatched:
        raise AuditError([str(mismatched)]) from mismatched
