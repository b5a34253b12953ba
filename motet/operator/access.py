"""Who a request is from, and what the operator's policies let that key do: decided from the key alone."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from motet.composers.roles import named_models
from motet.composers.spec import Composition
from motet.operator.gates import Gated
from motet.operator.keys import DIGEST, PREFIX, Key
from motet.operator.policies import GIVES_AWAY, PolicyConfig
from motet.operator.settings import ServerConfig, Settings
from motet.settings import nearest

NOTHING = PolicyConfig()  # of keys that no policy is for


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key may do. `key` None: the server has no keys. `rules` None: everything; else what `policy` says."""

    key: str | None = None
    policy: str | None = None
    rules: PolicyConfig | None = None
    admin: bool = False


class Access:
    """The server's keys and policies.

    Args:
        keys: none: everybody is let in.
        policies: by name; none: every key may ask for everything.

    Attributes:
        needs_key: whether there are keys.
        everybody: what everybody may do where there are none.
    """

    def __init__(self, keys: Sequence[Key] = (), policies: Mapping[str, PolicyConfig] | None = None) -> None:
        self.policies = dict(policies or {})
        self._grants = {key.digest: self._granted(key) for key in keys}
        self.needs_key = bool(self._grants)
        self.everybody = self._granted(None)

    @classmethod
    def of(cls, server: ServerConfig, policies: Mapping[str, PolicyConfig] | None = None) -> Access:
        return cls(keys_of(server), policies)

    def grant(self, digest: bytes) -> Grant | None:
        """What the key of this digest may do; None: it is not known, or there are no keys. Compares with every key, so
        that the time says nothing about which one is near."""
        found = [grant for known, grant in self._grants.items() if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    def _granted(self, key: Key | None) -> Grant:
        identity = None if key is None else key.id
        if not self.policies:
            return Grant(identity)
        named = (name for name, policy in self.policies.items() if key is not None and _is_for(policy, key))
        default = (name for name, policy in self.policies.items() if policy.default)
        name = next(named, None) or next(default, None)
        policy = NOTHING if name is None else self.policies[name]
        rules = None if policy.unrestricted else policy
        return Grant(identity, name, rules, policy.admin and key is not None)


def keys_of(server: ServerConfig) -> list[Key]:
    return [Key.read(key.get_secret_value()) for key in server.api_keys]


def _is_for(policy: PolicyConfig, key: Key) -> bool:
    return any(written == key.id or _digest(written) == key.digest for written in policy.keys)


def _digest(written: str) -> bytes | None:
    digits = written.removeprefix(PREFIX)
    return bytes.fromhex(digits) if written.startswith(PREFIX) and DIGEST.fullmatch(digits) else None


def policy_problems(settings: Settings, compositions: Collection[str]) -> list[str]:
    """What is wrong with the policies, and with the names of keys, as sentences."""
    keys = keys_of(settings.server)
    twice = [name for name, count in Counter(key.id for key in keys).items() if count > 1]
    problems = [f"server.api_keys: two keys are named {name!r}." for name in twice]
    problems += [problem for name in settings.policies for problem in _problems(name, settings, keys, compositions)]
    defaults = [name for name, policy in settings.policies.items() if policy.default]
    if len(defaults) > 1:
        problems.append(f"policies: {' and '.join(defaults)} are both the default.")
    return problems + _drafting(settings) + _shared(settings.policies, keys)


def _drafting(settings: Settings) -> list[str]:
    """vLLM drafts for all requests or for none: it could serve nothing to keys whose policy closes speculation."""
    if not settings.engine.engine_args.get("speculative_config"):
        return []
    closed = [name for name, policy in settings.policies.items() if policy.models and not policy.allow.speculation]
    return [
        f"policies.{name}.allow.speculation: vLLM drafts for every request, as engine.engine_args.speculative_config "
        "says, and this policy closes that: all its requests would be refused. Open it, or leave the other out."
        for name in closed
    ]


def _problems(name: str, settings: Settings, keys: Sequence[Key], compositions: Collection[str]) -> Iterator[str]:
    policy = settings.policies[name]
    for i, written in enumerate(policy.keys):
        if not any(_is_for(PolicyConfig(keys=(written,)), key) for key in keys):
            shown = written if len(written) < 20 else f"{written[:19]}…"  # it may be the key itself
            yield f"policies.{name}.keys.{i}: no key is named {shown!r}.{nearest(written, [key.id for key in keys])}"
    known = [*settings.models, *compositions]
    for model, target in policy.targets().items():
        if target not in known:
            yield f"policies.{name}.models.{model}: nothing is named {target!r}.{nearest(target, known)}"
    if policy.unrestricted and (policy.models or list(policy.allow.opened())):
        yield f"policies.{name}.unrestricted: everything may be asked for: leave out 'models' and 'allow'."
    if policy.admin and not keys:
        yield f"policies.{name}.admin: without server.api_keys everybody could unload the models."


def _shared(policies: Mapping[str, PolicyConfig], keys: Sequence[Key]) -> list[str]:
    found = {key.id: [name for name, policy in policies.items() if _is_for(policy, key)] for key in keys}
    return [f"policies: {' and '.join(names)} are both for key {key!r}." for key, names in found.items() if names[1:]]


def policy_warnings(
    settings: Settings, compositions: Mapping[str, Composition], gated: Mapping[str, Gated] | None = None
) -> list[str]:
    """What each opening gives away, and what the operator may not have meant."""
    said = [
        f"policies.{name}.allow.{opening}: {GIVES_AWAY[opening]}."
        for name, policy in settings.policies.items()
        for opening in policy.allow.opened()
    ]
    for name, policy in settings.policies.items():
        said += [f"policies.{name}.models: {sentence}" for sentence in _beside(policy, compositions, gated or {})]
        if not policy.models and not policy.unrestricted:
            said.append(f"policies.{name}: its keys reach no model.")
    if settings.policies and settings.server.open_metrics:
        said.append("server.open_metrics: /metrics names members and strategies to everybody.")
    return said + _uncovered(settings)


def _uncovered(settings: Settings) -> list[str]:
    policies = settings.policies
    if not policies or any(policy.default for policy in policies.values()):
        return []
    without = [key.id for key in keys_of(settings.server) if not any(_is_for(one, key) for one in policies.values())]
    who = f"keys {', '.join(without)} are" if without else "everybody is" if not settings.server.api_keys else ""
    return [f"policies: {who} under none of them and reach nothing."] if who else []


def _beside(policy: PolicyConfig, compositions: Mapping[str, Composition], gated: Mapping[str, Gated]) -> Iterator[str]:
    """Models of a policy that give away what a composition of the same policy hides."""
    targets = policy.targets()

    def models_of(target: str) -> set[str]:
        if target in gated:
            return models_of(gated[target].composition) | models_of(gated[target].otherwise)
        return {model for _, model in named_models(compositions[target], "")} if target in compositions else {target}

    members = {name: models_of(target) for name, target in targets.items()}
    for name, target in targets.items():
        others = [other for other in targets if targets[other] != target and members[other] & members[name]]
        if (target in compositions or target in gated) and others:
            yield f"{name} has members in common with {', '.join(others)}: together they tell more than either."
