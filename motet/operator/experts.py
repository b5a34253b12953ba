"""What the bundles of the operator's models say, checked against the models themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from motet.composers import vocabulary
from motet.experts.bundle import BUNDLE, BundleError, ExpertBundle, read_bundle
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.fit import Known
from motet.models.files import HEAD
from motet.models.info import HeadKind
from motet.models.tokenizer import Tokenizer
from motet.operator.file import ConfigError
from motet.operator.sources import Source, local_folder

if TYPE_CHECKING:
    from motet.models.heads import ReadingHead


def read_experts(sources: Mapping[str, Source], tokenizers: Mapping[str, Tokenizer]) -> dict[str, Known]:
    """Every model's bundle, and the fingerprints of all weights where a bundle names its partner's.

    Raises:
        ConfigError: bundles that cannot be read or are not of their model's tokenizer or base; all together.
    """
    bundles: dict[str, ExpertBundle | None] = {}
    problems: list[str] = []
    for name, source in sources.items():
        try:
            bundles[name] = _bundle(source, tokenizers[name])
        except BundleError as error:
            problems += [f"models.{name}: {problem}." for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    wanted = any(bundle and bundle.partner and bundle.partner.weights for bundle in bundles.values())
    return {name: Known(bundles[name], _weights(source) if wanted else None) for name, source in sources.items()}


def head_of(source: Source) -> tuple[HeadKind, Callable[[int], ReadingHead]] | None:
    """What is served with the model, made for the width of its hidden states.

    Raises:
        BundleError: the bundle cannot be read. ValueError (when made): the head's file cannot.
    """
    folder = local_folder(source.path, source.revision, BUNDLE)
    bundle = None if folder is None else read_bundle(folder)
    if folder is None or bundle is None or bundle.head is None:
        return None
    from motet.models.heads import read_head  # torch

    spec = bundle.head
    return spec.kind, lambda hidden_size: read_head(folder, spec.made(hidden_size))


def _weights(source: Source) -> str | None:
    folder = source.folder()
    return None if folder is None else weights_fingerprint(folder)


def _bundle(source: Source, tokenizer: Tokenizer) -> ExpertBundle | None:
    """Raises BundleError: the tokenizer or the adapter's base is another one than the bundle says."""
    folder = local_folder(source.path, source.revision, BUNDLE)
    bundle = None if folder is None else read_bundle(folder)
    if folder is None or bundle is None:
        return None
    found = vocabulary.fingerprint(tokenizer.hf)
    problems: list[str] = []
    if found != bundle.tokenizer_fingerprint:
        problems.append(
            f"the tokenizer is not the one that the expert was trained with: its fingerprint is {found}, {BUNDLE} "
            f"says {bundle.tokenizer_fingerprint}"
        )
    problems += _base_problems(source, bundle)
    if bundle.head is not None and not (folder / HEAD).is_file():
        problems.append(f"{BUNDLE} says that a {bundle.head.kind} lies beside the weights, but there is no {HEAD}")
    if problems:
        raise BundleError(problems)
    return bundle


def _base_problems(source: Source, bundle: ExpertBundle) -> list[str]:
    """An adapter on another base than its own computes nonsense, whatever the shapes say."""
    expected = bundle.base.weights if bundle.base is not None else None
    if source.base is None or expected is None or bundle.base is None:
        return []
    folder = local_folder(source.base, source.base_revision, "config.json")
    given = None if folder is None else weights_fingerprint(folder)
    if given in (None, expected):
        return []
    return [f"the adapter was trained on {bundle.base.path!r} (weights {expected[:12]}), its base here has {given}"]
