"""What a policy lets a key see of the registry: the names it lists, each with what answers in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan, Stream
from motet.composers.spec import Composition
from motet.operator.gates import Gate
from motet.operator.loaded import LoadedModel
from motet.operator.policies import PolicyConfig
from motet.operator.registry import Registry


class NotAllowed(Exception):
    """A policy closes what a request asks for. `param` is the request's field, `opening` what would open it."""

    def __init__(self, message: str, param: str | None = None, opening: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.opening = opening


def begun_by_clients(registry: Registry, policies: Mapping[str, PolicyConfig]) -> list[str]:
    """Warnings: names whose messages a model reads as plain text, where a closed `prefill` means nothing."""
    found: list[str] = []
    for policy, rules in policies.items():
        visible = VisibleRegistry(registry, rules)
        for name in () if rules.unrestricted or rules.allow.prefill else visible.names:
            sides = (visible.plan(name, chat=True, applied=applied) for applied in (True, False))
            read = {stream.model for plan in sides for stream in plan.streams if _reads_plain(stream, registry)}
            if read:
                found.append(
                    f"policies.{policy}.models: {name} reads messages as plain text ({', '.join(sorted(read))}): every "
                    "message is an answer that the client has begun."
                )
    return found


def _reads_plain(stream: Stream, registry: Registry) -> bool:
    own = stream.prompt
    if own is not None and own.is_own:
        return False
    asked = None if own is None else own.template
    return (asked or registry.members[stream.model].template) == "plain"


class VisibleRegistry(Registry):
    """The registry as the keys of a policy see it. `members` are still all of them, for what computes; names, plans and
    cards are those of the policy, and its plans keep their masks.

    Args:
        whole: everything that is loaded.
        policy: what may be named, and what answers.
    """

    def __init__(self, whole: Registry, policy: PolicyConfig) -> None:
        super().__init__(whole.members, created=whole.created, gates=whole.gates)
        self.policy = policy
        self._whole = whole
        there = frozenset(whole.names)  # a name whose stand-in is gone is a name that nobody has
        self._targets: Mapping[str, str] = {name: one for name, one in policy.targets().items() if one in there}
        self._planned: dict[tuple[str, bool, bool], Plan] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self._targets)

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Names that no answer to these keys may hold."""
        return (
            frozenset()
            if self.policy.allow.members
            else frozenset((*self._whole.names, *self._whole.gates)) - frozenset(self.names)
        )

    def gate_of(self, name: str | None) -> Gate | None:
        return self._whole.gate_of(self._targets.get(name or ""))

    def plan(
        self, name: str | None, written: Composition | None = None, *, chat: bool = False, applied: bool = True
    ) -> Plan:
        """As `Registry.plan`, of the names of the policy alone.

        Raises:
            NotAllowed: a composition where the policy has none.
        """
        if written is not None:
            return self._holding(self._composed(name, written, chat))
        if name is None:
            raise CompositionError(self._missing(), "model", "missing_model")
        if name not in self._targets:
            raise self.unknown(name)
        if (name, chat, applied) not in self._planned:
            plan = self._whole.plan(self._targets[name], chat=chat, applied=applied)
            self._planned[name, chat, applied] = self._holding(plan)
        return self._planned[name, chat, applied]

    def _holding(self, plan: Plan) -> Plan:
        return plan if self.policy.allow.lifted_masks else replace(plan, masks_hold=True)

    def _composed(self, name: str | None, written: Composition, chat: bool) -> Plan:
        if not self.policy.allow.compositions:
            raise NotAllowed("The policy of this key does not allow compositions.", "composition", "compositions")
        if name is not None and name not in self._targets:
            raise self.unknown(name)
        return self._open.plan(name, written, chat=chat)

    @cached_property
    def _open(self) -> Registry:
        """Over what an allowed composition may name: the policy's models as they are in the file."""
        return Registry({name: self.members[name] for name in self.names if name in self.members})

    def named(self, name: str, *, chat: bool = False) -> Plan:
        return self.plan(name, chat=chat)

    def member(self, name: str | None) -> LoadedModel:
        if name is None and len(self.names) != 1:
            raise CompositionError(self._missing(), "model", "missing_model")
        return self.base_of(self.plan(name or self.names[0]))

    def card(self, name: str) -> dict[str, Any]:
        if name not in self._targets:
            raise self.unknown(name)
        card = self._whole.card(self._targets[name])
        if self.policy.allow.members:
            return card | {"id": name}
        hidden = dict.fromkeys(("parent", "composition", "expert", "token_maps"))
        return card | {"id": name, "root": name} | hidden
