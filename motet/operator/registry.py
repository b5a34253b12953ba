"""What a request may name: models, and compositions that the operator named, as model ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from motet.composers.errors import CompositionError, show
from motet.composers.exits import Depth
from motet.composers.plan import Plan, single
from motet.composers.roles import named_models
from motet.composers.spec import Composition, build_plan, describe
from motet.composers.vocabulary import VocabularyMismatch, shared_width
from motet.engines.base import common_width, unlike_clusters
from motet.experts.fit import Known, misfits
from motet.models.info import ModelInfo
from motet.operator.gates import Gate, Gated
from motet.operator.loaded import LoadedModel
from motet.operator.translation import TokenMaps, check_mapped, map_cards, with_maps
from motet.settings import nearest

log = logging.getLogger(__name__)


class UnknownModel(LookupError):
    """A request names a model that is not there."""


@dataclass
class Registry:
    """`gated`: named compositions that answer what their gate lets pass to them; `gates`: by name."""

    members: Mapping[str, LoadedModel]
    compositions: Mapping[str, Composition] = field(default_factory=dict[str, Composition])
    created: int = 0  # unix seconds
    gated: Mapping[str, Gated] = field(default_factory=dict[str, Gated])
    gates: Mapping[str, Gate] = field(default_factory=dict[str, Gate])
    maps: TokenMaps = field(default_factory=TokenMaps, repr=False)
    _named: dict[tuple[str, bool], Plan] = field(default_factory=dict[tuple[str, bool], Plan], repr=False)
    _narrowed: dict[tuple[str, int], LoadedModel] = field(
        default_factory=dict[tuple[str, int], LoadedModel], repr=False
    )
    _warned: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]], repr=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (*self.members, *self.compositions, *self.gated)

    def gate_of(self, name: str | None) -> Gate | None:
        """The gate that decides about prompts to the composition `name`; None: it has none, or there is none."""
        gated = self.gated.get(name or "")
        return None if gated is None else self.gates[gated.gate]

    def plan(
        self, name: str | None, written: Composition | None = None, *, chat: bool = False, applied: bool = True
    ) -> Plan:
        """The plan of a request for the model or composition `name`, or for one that it has `written` over the base
        `name`; `chat`: its prompt is messages; `applied`: what the gate said, where `name` has one.

        Raises:
            UnknownModel: no model and no composition has the name.
            CompositionError: the composition is wrong, names unknown models or models of unlike vocabularies; there is
                no name.
        """
        if name is not None and name not in self.names:
            raise self.unknown(name)
        if written is None:
            if name is None:
                raise CompositionError(self._missing(), "model", "missing_model")
            side = self.gated[name].side(applied) if name in self.gated else name
            return self.named(side, chat=chat) if side in self.compositions else single(side)
        if name in self.compositions or name in self.gated:
            raise CompositionError(f"Model {name!r} is a composition already; name a base model.", "composition")
        return self.build(written, name, chat=chat)

    def named(self, name: str, *, chat: bool = False) -> Plan:
        """The plan of a named composition, built once."""
        if (name, chat) not in self._named:
            self._named[name, chat] = self.build(self.compositions[name], chat=chat)
        return self._named[name, chat]

    def build(self, composition: Composition, base: str | None = None, *, chat: bool = False) -> Plan:
        """The plan of a composition whose members are loaded and share their vocabulary."""
        own = composition.own_base(base)
        first = own.model if own else base or ""
        member = self.members.get(first)
        named = {first, *(model for _, model in named_models(composition, ""))} & self._alike(first)
        plan = build_plan(
            composition,
            base,
            known=self.members,
            token_id=member.tokenizer.single_id if member else lambda _: None,
            chat=chat,
            depth=_depth(member),
            threshold=None if member is None else member.info.threshold,
            vocab_size=min((self.infos[name].vocab_size for name in named), default=None),
        )
        plan = self._translated(plan)
        self._check_head(composition, plan)
        self._warn_of_ends(plan)
        self._check_experts(composition, base)
        return plan

    def _alike(self, base: str) -> set[str]:
        """The models whose ids are the base's in a composition: all but those that are mapped."""
        own = self.members[base].vocabulary.fingerprint if base in self.members else ""
        return {
            name
            for name, member in self.members.items()
            if member.vocabulary.fingerprint == own or not member.vocabulary.translated
        }

    def _translated(self, plan: Plan) -> Plan:
        """The plan with the maps of members that have other tokens. Raises CompositionError: they may not have any."""
        models = dict.fromkeys(stream.model for stream in plan.streams)
        base, *_ = models
        alike = self._alike(base)
        vocabularies = {model: self.members[model].vocabulary for model in models if model in alike}
        if len({vocabulary.fingerprint for vocabulary in vocabularies.values()}) > 1:
            try:
                shared_width(vocabularies)
            except VocabularyMismatch as mismatch:
                said = (
                    f"{mismatch}. A member whose entry in the operator's file says `vocab: map` may have other tokens."
                )
                raise CompositionError(said, "composition", "vocabulary_mismatch") from mismatch
        others = [model for model in models if model not in alike]
        plan = with_maps(plan, {model: self.maps.between(self.members[base], self.members[model]) for model in others})
        check_mapped(plan)
        return plan

    def map_all(self) -> None:
        """Makes the maps that any composition may need, so that no request waits for one."""
        for base in self.members:
            for model in self.members.keys() - self._alike(base):
                self.maps.between(self.members[base], self.members[model])

    def _check_head(self, composition: Composition, plan: Plan) -> None:
        """Raises CompositionError: the plan asks a head of its base that it does not have, or one of other clusters."""
        base = plan.streams[0].model
        if not plan.heads:
            return
        if self.infos[base].head in plan.heads:
            if (unlike := unlike_clusters(plan, self.infos[base])) is not None:
                raise CompositionError(f"composition.adapters: {unlike}.", "composition.adapters")
            return
        others = [name for name, info in self.infos.items() if info.head in plan.heads]
        wanted = " or ".join(plan.heads)
        raise CompositionError(
            f"composition.base: strategy {composition.strategy!r} needs a {wanted} that was trained on its base, "
            f"and {base!r} has {_a_head(self.infos[base])}. Models with a {wanted}: {', '.join(others) or 'none'}.",
            "composition.base",
        )

    def _warn_of_ends(self, plan: Plan) -> None:
        """An expert whose ends are all cut off ends no answer: it goes on until another member does, or the limit."""
        width = common_width(plan, self.infos)
        own = (stream for stream in plan.streams if stream.weight > 0 and stream.tokens is None)
        for model in dict.fromkeys(stream.model for stream in own):
            ends = self.infos[model].eos_token_ids
            if ends and min(ends) >= width and (model, width) not in self._warned:
                self._warned.add((model, width))
                log.warning(
                    "model %s ends its answers with token %s alone, which is cut off where it is composed over %d ids: "
                    "only the other members end those answers, or max_tokens",
                    model,
                    " or ".join(map(str, ends)),
                    width,
                )

    def base_of(self, plan: Plan) -> LoadedModel:
        """The base of a plan with the tokens that all members have: what requests may name, and answers consist of."""
        member = self.members[plan.streams[0].model]
        width = common_width(plan, self.infos)
        if width == member.info.vocab_size:
            return member
        narrowed = replace(member, info=replace(member.info, vocab_size=width))
        return self._narrowed.setdefault((member.info.name, width), narrowed)

    @cached_property
    def infos(self) -> Mapping[str, ModelInfo]:
        return {name: member.info for name, member in self.members.items()}

    def _check_experts(self, composition: Composition, base: str | None) -> None:
        wrong = misfits(composition, base, self._known)
        if wrong:
            raise CompositionError("; ".join(map(str, wrong)), wrong[0].path, "expert_mismatch")

    @cached_property
    def _known(self) -> Mapping[str, Known]:
        return {name: member.known for name, member in self.members.items()}

    def member(self, name: str | None) -> LoadedModel:
        """The model of that name, the base of a composition of that name. None is the first model of the file where
        all have its vocabulary: clients that know servers of one model send no name.

        Raises:
            UnknownModel: no model and no composition has the name.
            CompositionError: no name where it decides the tokens.
        """
        if name is None and len({member.vocabulary.fingerprint for member in self.members.values()}) > 1:
            raise CompositionError(
                f"'model' is missing, and the models' vocabularies differ. Models: {', '.join(self.names)}.",
                "model",
                "missing_model",
            )
        if name is not None and name not in self.names:
            raise self.unknown(name)
        if name is not None:
            name = self.plan(name).streams[0].model
        return self.members[name or next(iter(self.members))]

    def _missing(self) -> str:
        return f"'model' is missing. Models: {', '.join(self.names)}."

    def unknown(self, name: str) -> UnknownModel:
        """What is raised about a name that nothing has."""
        return UnknownModel(f"The model {show(name)} does not exist.{nearest(name, self.names)}")

    def card(self, name: str) -> dict[str, Any]:
        """OpenAI's model object; a composition's `parent` is its base, an adapter's or a soft prompt's the model that
        computes it."""
        card: dict[str, Any] = {"id": name, "object": "model", "created": self.created, "owned_by": "motet"}
        if name in self.members:
            member = self.members[name]
            expert = None if member.expert is None else member.expert.recommendation()
            own = _card(member.source, member.info.backbone, member.info.max_model_len, None)
            return card | own | {"expert": expert, "token_maps": None}
        if name in self.gated:
            return card | self._gated_card(name)
        if name not in self.compositions:
            raise self.unknown(name)
        composition = self.compositions[name]
        plan = self.named(name)
        length = min(self.members[stream.model].info.max_model_len for stream in plan.streams)
        own = _card(name, plan.streams[0].model, length, describe(composition))
        return card | own | {"expert": None, "token_maps": map_cards(plan)}

    def _gated_card(self, name: str) -> dict[str, Any]:
        """Raises CompositionError: a side is not loaded, or the two have unlike tokens: ids would mean two things."""
        gated = self.gated[name]
        for side in (gated.composition, gated.otherwise):
            if side not in self.names:
                raise CompositionError(str(self.unknown(side)), "composition")
        plans = [self.plan(name, applied=applied) for applied in (True, False)]
        bases = [self.members[plan.streams[0].model] for plan in plans]
        if bases[0].vocabulary.fingerprint != bases[1].vocabulary.fingerprint:
            said = f"otherwise: the tokens of {gated.otherwise!r} are not those of {gated.composition!r}"
            raise CompositionError(said, "composition", "vocabulary_mismatch")
        length = min(self.members[stream.model].info.max_model_len for plan in plans for stream in plan.streams)
        own = _card(name, bases[0].info.name, length, gated.model_dump())
        return own | {"expert": None, "token_maps": map_cards(*plans)}


def _depth(base: LoadedModel | None) -> Depth | None:
    if base is None or not base.info.num_layers:
        return None
    return Depth(base.info.num_layers, base.info.tied)


def _a_head(info: ModelInfo) -> str:
    return "none" if info.head is None else f"a {info.head}"


def _card(root: str, parent: str | None, max_model_len: int, composition: dict[str, Any] | None) -> dict[str, Any]:
    return {"root": root, "parent": parent, "max_model_len": max_model_len, "composition": composition}
