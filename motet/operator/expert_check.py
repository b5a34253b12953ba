"""Whether an expert fits the models and compositions of an operator's file."""

from __future__ import annotations

from pathlib import Path

from motet.composers.roles import named_models
from motet.experts.bundle import BundleError, ExpertBundle, read_bundle
from motet.experts.check import Findings
from motet.experts.fingerprints import fingerprint, weights_fingerprint
from motet.experts.fit import Known, misfits
from motet.operator.file import Configuration
from motet.operator.sources import Source, find_source


def check_against(folder: Path, bundle: ExpertBundle, configuration: Configuration) -> Findings:
    """The partner must be among the models, and share the vocabulary; compositions that use the expert must fit it.

    No model is loaded. Models that are not on this machine are noted.
    """
    findings = Findings()
    known: dict[str, Known] = {}
    tokenizers: dict[str, str] = {}
    own: list[str] = []
    for name, model in configuration.settings.models.items():
        try:
            source = find_source(model, configuration.folder, configuration.settings.models)
            known[name], tokenizers[name] = _read(source)
        except (OSError, ValueError, BundleError) as error:
            findings.notes.append(f"models.{name} was not checked: {error}")
            continue
        if Path(source.path) == folder.resolve():
            own.append(name)
    # what a member that may be cut or mapped shares with the others is known once it is loaded
    other = {name for name, model in configuration.settings.models.items() if model.vocab != "exact"}
    tokenizers = {name: digest for name, digest in tokenizers.items() if name not in other and not other & set(own)}
    _check_partner(bundle, known, tokenizers, findings)
    others = [digest for name, digest in tokenizers.items() if name not in own]
    if bundle.tokenizer_fingerprint not in others and not other:
        findings.problems.append("no other model of the file has the expert's vocabulary")
    for name in own:
        _check_compositions(name, configuration, known, tokenizers, findings)
    return findings


def _read(source: Source) -> tuple[Known, str]:
    """(bundle and weights, fingerprint of the tokenizer)."""
    folder = source.folder()
    if folder is None:
        raise ValueError(f"{source.path} is not on this machine")
    return Known(read_bundle(folder), weights_fingerprint(folder)), fingerprint(source.tokenizer[0])


def _check_partner(
    bundle: ExpertBundle, known: dict[str, Known], tokenizers: dict[str, str], findings: Findings
) -> None:
    partner = bundle.partner
    if partner is None:
        findings.notes.append("the bundle names no partner")
    elif partner.weights is None:
        findings.notes.append(f"the partner {partner.path!r} has no fingerprint in the bundle: not checked")
    else:
        names = [name for name, model in known.items() if model.weights == partner.weights]
        if not names:
            findings.problems.append(
                f"no model of the file has the weights of the partner {partner.path!r} ({partner.weights})"
            )
        findings.problems += [
            f"the partner {name!r} has another vocabulary than the expert"
            for name in names
            if tokenizers.get(name, bundle.tokenizer_fingerprint) != bundle.tokenizer_fingerprint
        ]


def _check_compositions(
    expert: str,
    configuration: Configuration,
    known: dict[str, Known],
    tokenizers: dict[str, str],
    findings: Findings,
) -> None:
    for name, composition in configuration.compositions.items():
        own = composition.own_base(None)
        members = {model for _, model in named_models(composition, "")} | ({own.model} if own else set[str]())
        if expert not in members:
            continue
        findings.problems += [f"compositions.{name}: {wrong}" for wrong in misfits(composition, None, known)]
        findings.problems += [
            f"compositions.{name}: {member!r} has another vocabulary than {expert!r}"
            for member in sorted(members)
            if {member, expert} <= tokenizers.keys() and tokenizers[member] != tokenizers[expert]
        ]
