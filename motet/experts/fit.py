"""Whether the experts of a composition stand where they belong, against the partners that they were made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from motet.composers.roles import BaseObject, RoleObject, Spec, field_names, named_models
from motet.composers.spec import ROOT, Compose, Composition
from motet.composers.strategies.eft import Eft
from motet.composers.strategies.strategy import Strategy
from motet.experts.bundle import ExpertBundle


@dataclass(frozen=True, slots=True)
class Known:
    """A model of the registry: its bundle and `weights_fingerprint`, None where it has none or it is not known."""

    bundle: ExpertBundle | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """`path`: the dotted path of the composition's field that is wrong."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Pair:
    """An expert's place in a composition, and the place of the model that it is set against there."""

    role: str
    expert: str
    other_path: str
    other: str


def misfits(composition: Composition, base: str | None, known: Mapping[str, Known]) -> list[Misfit]:
    """What speaks against a composition, as far as its experts' bundles know.

    A partner is judged by its weights where both fingerprints are known, else by the base family where both models
    name one; a bundle that names no partner accepts any. In the strategy that a bundle recommends, the model may
    stand in the bundle's role, be the base, or be the partner of another expert.

    Args:
        composition: parsed.
        base: the request's `model`.
        known: name → model; models that are missing are not judged.
    """
    own = composition.own_base(base)
    parts = _parts(composition)
    return [wrong for path, part in parts for wrong in _part_misfits(path, part, own.model if own else base, known)]


def open_roles(
    kind: type[Strategy], roles: Sequence[str], bundle: ExpertBundle | None, others: Iterable[ExpertBundle | None]
) -> list[str]:
    """The roles of a strategy that a model of this bundle may stand in, as `misfits` judges; all of them where it was
    not made for the strategy.

    Args:
        kind: the strategy.
        roles: its roles.
        bundle: the model's own.
        others: those of the models beside it: experts whose partner it may be.
    """
    name = kind.model_fields["strategy"].default
    if bundle is None or bundle.strategy != name:
        return list(roles)
    expected = {bundle.role, "base"}
    if kind.partners is not None and any(other is not None for other in others):
        expected.add(kind.partners[1])
    return [role for role in roles if role in expected]


def _parts(composition: Composition) -> list[tuple[str, Strategy]]:
    if isinstance(composition, Compose):
        return [(f"{ROOT}.compose.{i}", part) for i, part in enumerate(composition.compose)]
    return [(ROOT, composition)]


def _part_misfits(path: str, part: Strategy, base: str | None, known: Mapping[str, Known]) -> Iterator[Misfit]:
    pairs = list(_pairs(path, part, base))
    for pair in pairs:
        expert, other = known.get(pair.expert, Known()), known.get(pair.other, Known())
        # a model that is set against the base itself is judged only in the role that it was made for
        judged = expert.bundle is not None and (
            expert.bundle.role == pair.role or not pair.other_path.endswith(".base")
        )
        if judged and expert.bundle is not None and (reason := mismatch(expert.bundle, other)) is not None:
            yield Misfit(pair.other_path, _sentence(pair, expert.bundle, reason))
    partners = {pair.other_path for pair in pairs if known.get(pair.expert, Known()).bundle is not None}
    yield from _role_misfits(path, part, partners, known)


def _pairs(path: str, part: Strategy, base: str | None) -> Iterator[_Pair]:
    if part.partners is None:
        return
    role, other = part.partners
    holders: list[tuple[str, Spec]] = [(path, part)]
    if isinstance(part, Eft) and part.traits is not None:
        holders = [(f"{path}.traits.{i}", trait) for i, trait in enumerate(part.traits)]
    for at, holder in holders:
        attributes = {written: attribute for attribute, written in field_names(type(holder)).items()}
        names = [base if name == "base" else _model(getattr(holder, attributes[name])) for name in (role, other)]
        if names[0] is not None and names[1] is not None:
            yield _Pair(role, names[0], f"{at}.{other}", names[1])


def _model(value: object) -> str | None:
    return value.model if isinstance(value, RoleObject | BaseObject) else None


def mismatch(bundle: ExpertBundle, given: Known) -> str | None:
    """Why a model is not the partner that a bundle names; None where it is, or where nothing is known against it."""
    partner = bundle.partner
    if partner is None:
        return None
    if partner.weights is not None and given.weights is not None:
        same = partner.weights == given.weights
        return None if same else f"its weights are {given.weights[:12]}, the partner's {partner.weights[:12]}"
    family = given.bundle.base_family if given.bundle is not None else None
    if None in (family, bundle.base_family) or family == bundle.base_family:
        return None
    return f"it is of the base family {family!r}, the expert of {bundle.base_family!r}"


def _sentence(pair: _Pair, bundle: ExpertBundle, reason: str) -> str:
    assert bundle.partner is not None
    return (
        f"{pair.other!r} is not the partner of the expert {pair.expert!r}, which was set against "
        f"{bundle.partner.path!r}: {reason}. Name the partner, or let the operator set models.{pair.expert}."
        "check_expert to false"
    )


def _role_misfits(path: str, part: Strategy, partners: set[str], known: Mapping[str, Known]) -> Iterator[Misfit]:
    for at, name in named_models(part, path):
        bundle = known.get(name, Known()).bundle
        role = next(name for name in reversed(at.split(".")) if not name.isdigit())
        if bundle is None or bundle.strategy != part.strategy or role in (bundle.role, "base") or at in partners:
            continue
        yield Misfit(
            at,
            f"{name!r} is made for the role {bundle.role!r} of {part.strategy}, not for {role!r}. Put it there, or let "
            f"the operator set models.{name}.check_expert to false",
        )
