"""What the bundles of the operator's models say, checked against the models themselves."""

from __future__ import annotations

from collections.abc import Mapping

from motet.composers import vocabulary
from motet.experts.bundle import BUNDLE, BundleError, ExpertBundle, read_bundle
from motet.experts.fingerprints import weights_fingerprint
from motet.experts.fit import Known
from motet.models.tokenizer import Tokenizer
from motet.operator.file import ConfigError
from motet.operator.sources import Source, local_folder


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


def _weights(source: Source) -> str | None:
    folder = source.folder()
    return None if folder is None else weights_fingerprint(folder)


def _bundle(source: Source, tokenizer: Tokenizer) -> ExpertBundle | None:
    """Raises BundleError: the tokenizer or the adapter's base is another one than the bundle says."""
    folder = local_folder(source.path, source.revision, BUNDLE)
    bundle = None if folder is None else read_bundle(folder)
    if bundle is None:
        return None
    found = vocabulary.fingerprint(tokenizer.hf)
    problems: list[str] = []
    if found != bundle.tokenizer_fingerprint:
        problems.append(
            f"the tokenizer is not the one that the expert was trained with: its fingerprint is {found}, {BUNDLE} "
            f"says {bundle.tokenizer_fingerprint}"
        )
    problems += _base_problems(source, bundle)
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
