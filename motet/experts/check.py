"""Whether a bundle on disk is whole, and what it says is true."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from motet.composers.vocabulary import ReadableTokenizer, Vocabulary, read_vocabulary
from motet.experts.bundle import BUNDLE, BundleError, ExpertBundle, ModelReference, read_bundle
from motet.experts.fingerprints import file_hash, weights_fingerprint
from motet.models import checkpoint
from motet.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter


@dataclass(slots=True)
class Findings:
    """`problems` make the bundle unusable, `notes` say what could not be checked."""

    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def check_bundle(folder: Path) -> tuple[ExpertBundle | None, Findings]:
    """Reads a bundle and checks its files, weights, tokenizer, and the base and partner where they are at hand.

    Base and partner are looked for relative to the bundle, to the folder that it lies in and to the working folder.

    Returns:
        The bundle, None where it cannot be read; everything that was found.
    """
    findings = Findings()
    try:
        bundle = read_bundle(folder)
    except BundleError as error:
        findings.problems += error.problems
        return None, findings
    if bundle is None:
        findings.problems.append(f"{folder} has no {BUNDLE}")
        return None, findings
    _check_files(folder, bundle, findings)
    _check_weights(folder, findings)
    _check_tokenizer(folder, bundle, findings)
    for kind, reference in (("base", bundle.base), ("partner", bundle.partner)):
        if reference is not None:
            _check_reference(kind, reference, folder, findings)
    return bundle, findings


def _check_files(folder: Path, bundle: ExpertBundle, findings: Findings) -> None:
    for name, digest in bundle.files.items():
        if not (folder / name).is_file():
            findings.problems.append(f"{name} is missing")
        elif file_hash(folder / name) != digest:
            findings.problems.append(f"{name} is not the file that the bundle was written with")


def _check_weights(folder: Path, findings: Findings) -> None:
    try:
        found = weights_fingerprint(folder)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    if found is None:
        findings.problems.append(f"{folder} holds no weights: no *.safetensors and no *.bin")
    if any((folder / name).is_file() for name in ADAPTER_WEIGHTS) != is_adapter(folder):
        findings.problems.append(f"an adapter needs both {' or '.join(ADAPTER_WEIGHTS)} and {ADAPTER_CONFIG}")


def read_tokenizer(source: Path) -> Vocabulary:
    """A folder's vocabulary. Raises OSError or ValueError: it has none that can be read."""
    return read_vocabulary(cast(ReadableTokenizer, checkpoint.read_tokenizer(str(source))), 0)


def _check_tokenizer(folder: Path, bundle: ExpertBundle, findings: Findings) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        findings.notes.append("the folder holds no tokenizer: its base's is used, and was not checked")
        return
    try:
        vocabulary = read_tokenizer(folder)
    except Exception as error:  # transformers raises whatever its parsers raise
        findings.problems.append(f"the tokenizer cannot be loaded: {error}")
        return
    if vocabulary.fingerprint != bundle.tokenizer_fingerprint:
        findings.problems.append(
            f"the tokenizer's fingerprint is {vocabulary.fingerprint}, the bundle says {bundle.tokenizer_fingerprint}"
        )
    if bundle.vocab_size not in (vocabulary.size, len(vocabulary.tokens)):  # they differ where ids have gaps
        findings.problems.append(f"the tokenizer has {vocabulary.size} ids, the bundle says {bundle.vocab_size}")
    width = _width(folder)
    if width is not None and width < bundle.vocab_size:
        findings.problems.append(f"the model has {width} tokens, the bundle says {bundle.vocab_size}")


def _width(folder: Path) -> int | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = cast("dict[str, Any]", json.loads(file.read_text("utf-8")))
    return cast("int | None", config.get("vocab_size", config.get("text_config", {}).get("vocab_size")))


def _check_reference(kind: str, reference: ModelReference, folder: Path, findings: Findings) -> None:
    """The base or partner, by its weights."""
    places = (folder, folder.parent, Path.cwd())
    found = next((place / reference.path for place in places if (place / reference.path).is_dir()), None)
    if reference.weights is None:
        findings.notes.append(f"the {kind} {reference.path!r} has no fingerprint in the bundle: not checked")
    elif found is None:
        findings.notes.append(f"the {kind} {reference.path!r} was not found here: not checked")
    elif (given := weights_fingerprint(found)) != reference.weights:
        findings.problems.append(f"the {kind} at {found} has the weights {given}, the bundle says {reference.weights}")
