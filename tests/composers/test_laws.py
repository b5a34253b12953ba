"""What compositions compute, against formulas written out in NumPy, and the laws that hold for all of them.

Logits are random float64 vectors, one per voice (model and prompt); a voice's logits do not depend on its stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from motet.composers.plan import Plan, Prompt
from motet.composers.rows import reference_logprobs
from motet.composers.spec import build_plan, parse_composition
from motet.composers.strategies import STRATEGIES
from motet.composers.strategies.rule_strategy import RuleStrategy
from motet.composers.timeline import Timeline
from motet.kernels.exits import ExitRow, premature
from motet.kernels.logits import Logits

Array = NDArray[np.float64]
KNOWN = ("base", "expert", "anti", "other")


@dataclass(frozen=True)
class World:
    """Logits by (model, prompt text); `shift` adds a constant to one model's logits, `ban` holds what it excludes."""

    seed: int
    vocab: int = 29
    scale: float = 3.0
    shift: tuple[str, float] = ("", 0.0)
    ban: tuple[tuple[str, int], ...] = ()

    def logits(self, model: str, text: str | None = None) -> Array:
        rng = np.random.default_rng([self.seed, zlib.crc32(f"{model}/{text}".encode())])
        values = rng.normal(size=self.vocab) * self.scale
        values += self.shift[1] if self.shift[0] == model else 0.0
        values[[token for name, token in self.ban if name == model]] = -np.inf
        return values

    def L(self, model: str, text: str | None = None, temperature: float = 1.0) -> Array:
        return normalised(self.logits(model, text) / temperature)


def normalised(z: Array) -> Array:
    top = z.max()
    return z - top - np.log(np.exp(z - top).sum())


def plan_of(value: object, base: str = "base") -> Plan:
    def no_token(text: str) -> None:
        """No text is one token here: ids only."""

    return build_plan(parse_composition(value), base, known=KNOWN, token_id=no_token)


def composed(
    value: object, world: World, base: str = "base", past: tuple[int, ...] = (), eos: tuple[int, ...] = ()
) -> Array:
    """Composed log-probs through the shipped path."""
    plan = Timeline(plan_of(value, base)).at(lambda: past)
    rows = spoken(plan, world)
    return reference_logprobs(plan, torch.from_numpy(rows[:, None]), generated=[past], eos_token_ids=eos)[0].numpy()


def spoken(plan: Plan, world: World) -> Array:
    """Logits (K, V) of the plan's streams; of early exits, those of the layer that is chosen."""
    final = torch.from_numpy(world.logits(plan.streams[0].model))
    rows: list[Array] = []
    for stream in plan.streams:
        text = text_of(stream.prompt)
        if stream.exit is not None:
            early = [torch.from_numpy(world.logits(stream.model, f"layer {layer}")) for layer in stream.exit.layers]
            asked = ExitRow(0, range(1, len(early) + 1), stream.exit.select)
            text = f"layer {stream.exit.layers[premature(Logits([torch.stack([final, *early])]), [asked])[0]]}"
        rows.append(world.logits(stream.model, text))
    return np.stack(rows)


def text_of(prompt: Prompt | None) -> str | None:
    if prompt is None:
        return None
    changed = {"last": prompt.last_tokens, "pondered": prompt.pondered}
    return next((f"{how} {much}" for how, much in changed.items() if much), prompt.text)


def ratio(base: Array, alpha: float) -> NDArray[np.bool_]:
    return base >= base.max() + np.log(alpha)


def rank_or_ratio(base: Array, share: float) -> NDArray[np.bool_]:
    rank = max(1, int(np.floor(share * base.size)))
    return base >= min(np.sort(base)[::-1][rank - 1], base.max() + np.log(share))


def nucleus(base: Array, mass: float) -> NDArray[np.bool_]:
    keep, total = np.zeros(base.size, dtype=np.bool_), 0.0
    for token in np.argsort(-base, kind="stable"):
        keep[token] = True
        total += float(np.exp(base[token]))
        if total >= mass and mass < 1:
            break
    return keep


def masked(z: Array, *keeps: NDArray[np.bool_]) -> Array:
    return np.where(np.logical_and.reduce(keeps), z, -np.inf)


def entropy(p: Array) -> float:
    return float(-sum(x * np.log(x) for x in p if x > 0))


def premature_layer(final: Array, early: dict[int, Array], select: str) -> int:
    """DoLa's layer: of distributions by layer that of the greatest JSD = H((p + q) / 2) − (H(p) + H(q)) / 2 from the
    final one, or of the greatest entropy; of equals the lowest."""
    p = np.exp(final)

    def score(layer: int) -> float:
        q = np.exp(early[layer])
        return entropy(q) if select == "entropy" else entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2

    return max(sorted(early), key=score)


def early(world: World, layers: tuple[int, ...], select: str = "divergence") -> Array:
    """L of the layer that is chosen for the base."""
    found = {layer: world.L("base", f"layer {layer}") for layer in layers}
    return found[premature_layer(world.L("base"), found, select)]


Formula = Callable[[World, float, float], Array]


@dataclass(frozen=True)
class Case:
    """A composition with a weight w in [−3, 3] and a share s in (0, 1], and its z written out."""

    name: str
    value: Callable[[float, float], dict[str, Any]]
    z: Formula


CASES = [
    Case(
        "proxy_tuning",
        lambda w, s: {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "anti", "alpha": w},
        lambda m, w, s: m.L("base") + w * (m.L("expert") - m.L("anti")),
    ),
    Case(
        "eft gated",
        lambda w, s: {"strategy": "eft", "tuned": "expert", "reference": "anti", "beta": w, "top_p": s},
        lambda m, w, s: m.L("base") + np.where(nucleus(m.L("expert"), s), w * (m.L("expert") - m.L("anti")), 0.0),
    ),
    Case(
        "eft traits",
        lambda w, s: {
            "strategy": "eft",
            "traits": [
                {"tuned": "expert", "reference": "anti", "beta": w},
                {"tuned": "other", "reference": "anti", "beta": 0.5, "top_p": s},
            ],
        },
        lambda m, w, s: (
            m.L("base")
            + w * (m.L("expert") - m.L("anti"))
            + np.where(nucleus(m.L("other"), s), 0.5 * (m.L("other") - m.L("anti")), 0.0)
        ),
    ),
    Case(
        "contrastive reasoning",
        lambda w, s: {"strategy": "contrastive", "amateur": "anti", "beta": w, "alpha": s},
        lambda m, w, s: masked((1 + w) * m.L("base") - w * m.L("anti"), ratio(m.L("base"), s)),
    ),
    Case(
        "contrastive original",
        lambda w, s: {
            "strategy": "contrastive",
            "form": "original",
            "amateur": {"model": "anti", "last_tokens": 1},
            "amateur_temperature": abs(w) + 0.1,
            "alpha": s,
        },
        lambda m, w, s: masked(m.L("base") - m.L("anti", "last 1", temperature=abs(w) + 0.1), ratio(m.L("base"), s)),
    ),
    Case(
        "layer_contrast",
        lambda w, s: {"strategy": "layer_contrast", "layers": [1, 0], "alpha": w, "mask": s},
        lambda m, w, s: masked(m.L("base") - w * early(m, (0, 1)), ratio(m.L("base"), s)),
    ),
    Case(
        "layer_contrast by entropy",
        lambda w, s: {
            "strategy": "layer_contrast",
            "layers": [0, 1, 2],
            "select": "entropy",
            "alpha": w,
            "mask": None,
            "form": "extrapolation",
        },
        lambda m, w, s: (1 + w) * m.L("base") - w * early(m, (0, 1, 2), "entropy"),
    ),
    Case(
        "novelty",
        lambda w, s: {"strategy": "novelty", "untuned": "anti", "lambda": w, "alpha": s},
        lambda m, w, s: masked(m.L("base") - w * m.L("anti"), ratio(m.L("base"), s)),
    ),
    Case(
        "unlearn",
        lambda w, s: {"strategy": "unlearn", "assistant": "anti", "weight": w, "filter": s},
        lambda m, w, s: masked(m.L("base") - w * m.L("anti"), rank_or_ratio(m.L("base"), s)),
    ),
    Case(
        "divergence",
        lambda w, s: {"strategy": "divergence", "without": "anti", "with": "expert", "alpha": w},
        lambda m, w, s: m.L("base") + w * (m.L("anti") - m.L("expert")),
    ),
    Case(
        "context_aware",
        lambda w, s: {"strategy": "context_aware", "without": {"prompt": "Q"}, "alpha": w},
        lambda m, w, s: (1 + w) * m.L("base") - w * m.L("base", "Q"),
    ),
    Case(
        "hesitation",
        lambda w, s: {"strategy": "hesitation", "alpha": w, "share": 0.3, "mask": s},
        lambda m, w, s: np.where(
            ratio(m.L("base", "pondered 0.3"), s), (1 + w) * m.L("base", "pondered 0.3") - w * m.L("base"), -np.inf
        ),
    ),
    Case(
        "guidance",
        lambda w, s: {"strategy": "guidance", "scale": w},
        lambda m, w, s: w * m.L("base") + (1 - w) * m.L("base", "last 1"),
    ),
    Case(
        "experts",
        lambda w, s: {
            "strategy": "experts",
            "expert": ["expert", "other"],
            "antiexpert": "anti",
            "alpha": w,
            "top_p": s,
        },
        lambda m, w, s: masked(  # the base stands for the second anti-expert
            m.L("base") + w * (m.L("expert") - m.L("anti") + m.L("other") - m.L("base")), nucleus(m.L("base"), s)
        ),
    ),
    Case(
        "expert alone",
        lambda w, s: {"strategy": "experts", "expert": "expert", "alpha": w, "top_p": s},
        lambda m, w, s: masked(m.L("base") + w * (m.L("expert") - m.L("base")), nucleus(m.L("base"), s)),
    ),
    Case(
        "antiexperts alone",
        lambda w, s: {"strategy": "experts", "antiexpert": ["anti", "other"], "alpha": [w, 0.5], "top_p": s},
        lambda m, w, s: masked(
            m.L("base") + w * (m.L("base") - m.L("anti")) + 0.5 * (m.L("base") - m.L("other")), nucleus(m.L("base"), s)
        ),
    ),
    Case(
        "product",
        lambda w, s: {"strategy": "product", "members": [{"model": "base", "weight": w}, "expert"]},
        lambda m, w, s: w * m.L("base") + m.L("expert"),
    ),
    Case(
        "rules",
        lambda w, s: {
            "strategy": "rules",
            "eos_ramp": {"tokens": 10, "weight": w},
            "repetition": 1.5,
            "token_offsets": {"id:5": w, "id:6": -1},
        },
        lambda m, w, s: m.L("base") + rules(m, w),
    ),
    Case(
        "stack",
        lambda w, s: {
            "compose": [
                {"strategy": "unlearn", "assistant": "anti", "filter": s},
                {"strategy": "eft", "tuned": "expert", "reference": "anti", "beta": w, "top_p": 0.7},
                {"strategy": "contrastive", "amateur": "other"},
                {"strategy": "layer_contrast", "layers": [0, 3], "alpha": 0.3},
                {"strategy": "guidance"},
                {"strategy": "rules", "repetition": 2},
            ]
        },
        lambda m, w, s: masked(
            (1 + 0.5 + 0.5) * m.L("base")
            - 0.8 * m.L("anti")
            + np.where(nucleus(m.L("expert"), 0.7), w * (m.L("expert") - m.L("anti")), 0.0)
            - 0.5 * m.L("other")
            - 0.3 * early(m, (0, 3))
            - 0.5 * m.L("base", "last 1")
            - 2.0 * np.isin(np.arange(m.vocab), PAST),
            rank_or_ratio(m.L("base"), s),
            ratio(m.L("base"), 0.1),
        ),
    ),
]
PAST, EOS = (3, 4, 3), (0, 1)


def example(strategy: str, **models: str) -> dict[str, Any]:
    """The first case of a strategy over models of other names, for tests that try every strategy.

    Args:
        models: the new name of each of `KNOWN`.
    """
    values = (case.value(0.5, 0.5) for case in CASES)
    found = next((value for value in values if value.get("strategy") == strategy), None)
    assert found is not None, f"{strategy!r} has no Case in {__name__}, or its class has another `strategy`"
    return {field: _renamed(value, models) for field, value in found.items()}


def _renamed(value: Any, models: dict[str, str]) -> Any:
    match value:
        case str():
            return models.get(value, value)
        case list():
            return [_renamed(entry, models) for entry in cast("list[Any]", value)]
        case dict():
            return {key: _renamed(entry, models) for key, entry in cast("dict[str, Any]", value).items()}
        case _:
            return value


def test_every_sum_of_shifts_has_a_case() -> None:
    sums = {name for name, kind in STRATEGIES.items() if not issubclass(kind, RuleStrategy)}
    assert {case.value(1.0, 0.5).get("strategy", "compose") for case in CASES} == {*sums, "compose"}


def rules(world: World, weight: float) -> Array:
    r = np.zeros(world.vocab)
    r[list(EOS)] += weight * 3 / 10
    r[[3, 4]] -= 1.5
    r[5] += weight
    r[6] -= 1
    return r


worlds = st.builds(World, seed=st.integers(0, 2**32), vocab=st.integers(7, 60), scale=st.sampled_from([0.5, 3.0, 20.0]))
weights = st.floats(-3, 3).map(lambda w: round(w, 3))
shares = st.floats(0.001, 1).map(lambda s: round(s, 3)).filter(lambda s: s > 0)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_same(actual: Array, expected: Array, tolerance: float = 1e-9) -> None:
    assert not np.isnan(actual).any()
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@every_case
@settings(deadline=None, max_examples=40)
@given(world=worlds, w=weights, s=shares)
def test_formula(case: Case, world: World, w: float, s: float) -> None:
    actual = composed(case.value(w, s), world, past=PAST, eos=EOS)
    assert_same(actual, normalised(case.z(world, w, s)))
    assert actual.max() <= 1e-12
    assert np.exp(actual).sum() == pytest.approx(1.0)


@every_case
@settings(deadline=None, max_examples=25)
@given(world=worlds, w=weights, s=shares, model=st.sampled_from(KNOWN), constant=st.floats(-50, 50))
def test_constant_added_to_one_member_changes_nothing(
    case: Case, world: World, w: float, s: float, model: str, constant: float
) -> None:
    moved = World(world.seed, world.vocab, world.scale, shift=(model, constant))
    value = case.value(w, s)
    assert_same(composed(value, moved, past=PAST, eos=EOS), composed(value, world, past=PAST, eos=EOS), tolerance=1e-8)


IDENTITIES: list[tuple[str, dict[str, Any], str]] = [
    ("proxy α = 0", {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "anti", "alpha": 0}, "base"),
    ("proxy expert = antiexpert", {"strategy": "proxy_tuning", "expert": "anti", "antiexpert": "anti"}, "base"),
    ("proxy base = antiexpert", {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "base"}, "expert"),
    ("eft β = 0", {"strategy": "eft", "tuned": "expert", "reference": "anti", "beta": 0, "top_p": 0.5}, "base"),
    ("eft tuned = reference", {"strategy": "eft", "tuned": "anti", "reference": "anti", "top_p": 0.5}, "base"),
    ("eft up-scaling N = M", {"strategy": "eft", "tuned": "expert", "reference": "base"}, "expert"),
    (
        "eft N = M among traits that cancel",
        {
            "strategy": "eft",
            "traits": [
                {"tuned": "expert", "reference": "base"},
                {"tuned": "anti", "reference": "other"},
                {"tuned": "other", "reference": "anti"},
            ],
        },
        "expert",
    ),
    ("layer_contrast α = 0", {"strategy": "layer_contrast", "layers": [0, 1], "alpha": 0, "mask": None}, "base"),
    ("novelty λ = 0", {"strategy": "novelty", "untuned": "anti", "lambda": 0, "alpha": None}, "base"),
    ("unlearn w = 0", {"strategy": "unlearn", "assistant": "anti", "weight": 0, "filter": None}, "base"),
    ("unlearn f = 1", {"strategy": "unlearn", "assistant": "anti", "weight": 0, "filter": 1}, "base"),
    ("divergence α = 0", {"strategy": "divergence", "without": "anti", "with": "expert", "alpha": 0}, "base"),
    ("divergence with = without", {"strategy": "divergence", "without": "anti", "with": "anti"}, "base"),
    (
        "divergence with = without, by rank",
        {"strategy": "divergence", "without": "anti", "with": "anti", "form": "rank"},
        "base",
    ),
    ("context_aware α = 0", {"strategy": "context_aware", "without": {"prompt": "Q"}, "alpha": 0}, "base"),
    ("hesitation α = −1", {"strategy": "hesitation", "alpha": -1, "mask": None}, "base"),
    ("hesitation share 0", {"strategy": "hesitation", "share": 0, "mask": None}, "base"),
    ("guidance γ = 1", {"strategy": "guidance", "scale": 1}, "base"),
    ("experts α = 0", {"strategy": "experts", "expert": "expert", "alpha": 0, "top_p": None}, "base"),
    (
        "experts expert = antiexpert",
        {"strategy": "experts", "expert": "anti", "antiexpert": "anti", "alpha": 2, "top_p": 1},
        "base",
    ),
    (
        "experts base = antiexpert",
        {"strategy": "experts", "expert": "expert", "antiexpert": "base", "top_p": None},
        "expert",
    ),
    ("experts, one alone", {"strategy": "experts", "expert": "expert", "top_p": None}, "expert"),
    (
        "experts, a lone side of the base",
        {"strategy": "experts", "antiexpert": ["base", "base"], "alpha": [2, 0.3], "top_p": None},
        "base",
    ),
    ("product of one", {"strategy": "product", "members": ["base"]}, "base"),
    (
        "product of equals",
        {"strategy": "product", "members": [{"model": "base", "weight": w} for w in (0.25, 0.75)]},
        "base",
    ),
    ("dynamic expert = antiexpert", {"strategy": "dynamic", "expert": "anti", "antiexpert": "anti"}, "base"),
    (
        "dynamic pairs that cancel",
        {"strategy": "dynamic", "pairs": [{"expert": "expert", "antiexpert": "anti", "weight": w} for w in (2, -2)]},
        "base",
    ),
    ("rules of 0", {"strategy": "rules", "repetition": 0, "eos_ramp": {"tokens": 3, "weight": 0}}, "base"),
    (
        "stack that cancels",
        {
            "compose": [
                {"strategy": "unlearn", "assistant": "anti", "weight": 0.8, "filter": None},
                {"strategy": "product", "members": ["base", {"model": "anti", "weight": 0.8}]},
            ]
        },
        "base",
    ),
]


@pytest.mark.parametrize(("value", "same_as"), [i[1:] for i in IDENTITIES], ids=[i[0] for i in IDENTITIES])
@settings(deadline=None, max_examples=20)
@given(world=worlds)
def test_identity(value: dict[str, Any], same_as: str, world: World) -> None:
    assert_same(composed(value, world, past=PAST, eos=EOS), world.L(same_as), tolerance=1e-12)


@settings(deadline=None, max_examples=20)
@given(world=worlds, w=weights)
def test_one_strategy_stacked_is_itself(world: World, w: float) -> None:
    for case in CASES:
        value = case.value(w, 0.5)
        if "compose" not in value:
            stacked = composed({"compose": [value]}, world, past=PAST, eos=EOS)
            assert_same(stacked, composed(value, world, past=PAST, eos=EOS), tolerance=0)


@every_case
@settings(deadline=None, max_examples=40)
@given(
    world=worlds,
    w=weights,
    s=shares,
    ban=st.lists(st.tuples(st.sampled_from(KNOWN), st.integers(0, 6)), min_size=1, max_size=5),
)
def test_impossible_tokens(case: Case, world: World, w: float, s: float, ban: list[tuple[str, int]]) -> None:
    """−inf in members: never NaN or +inf; what an ungated stream with weight ≠ 0 excludes, the composition does."""
    world = World(world.seed, world.vocab + 7, world.scale, ban=tuple(ban))  # some token is left to every member
    value = case.value(w, s)
    actual = composed(value, world, past=PAST, eos=EOS)
    assert not np.isnan(actual).any()
    assert actual.max() <= 1e-12
    assert np.exp(actual).sum() == pytest.approx(1.0)
    best = int(world.logits("base").argmax())
    if actual[best] != 0.0:  # else it may be a row whose masks left nothing, which keeps the base's arg-max
        plan = plan_of(value)
        readers = {stream.model for stream in plan.streams if stream.weight != 0.0 and stream.inside is None}
        excluded = [token for model, token in ban if model in readers]
        assert np.isneginf(actual[excluded]).all()


def test_impossible_token_of_an_antiexpert_is_not_rewarded() -> None:
    """−α · (−inf) would be +inf: the token is banned instead, and the others keep their proportions."""
    world = World(1, ban=(("anti", 4),))
    actual = composed({"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "anti"}, world)
    z = world.L("base") + world.L("expert") - np.where(np.isneginf(world.L("anti")), np.inf, world.L("anti"))
    assert np.isneginf(actual[4])
    assert_same(actual, normalised(z))


def test_token_impossible_outside_of_a_gate_is_not_banned() -> None:
    """DExperts' reference turns a filtered expert into NaN; outside of its gate a term is 0, whatever it holds."""
    world = World(2)
    outside = int(world.logits("expert").argmin())
    world = World(2, ban=(("anti", outside),))
    value = {"strategy": "eft", "tuned": "expert", "reference": "anti", "top_p": 0.5}
    actual = composed(value, world)
    assert np.isfinite(actual).all()


def test_row_whose_masks_leave_nothing_keeps_the_arg_max_of_the_base() -> None:
    world = World(3)
    best = int(world.logits("base").argmax())
    world = World(3, ban=(("anti", best),))
    actual = composed({"strategy": "contrastive", "amateur": "anti", "alpha": 1}, world)
    assert actual[best] == 0.0
    assert np.isneginf(np.delete(actual, best)).all()


def test_top_p_of_1_masks_nothing() -> None:
    """Context-aware decoding's reference cuts the tail where the cumulative sum rounds to 1 before its end."""
    world = World(4, vocab=400, scale=30.0)
    assert np.sort(np.exp(world.L("base")))[::-1].cumsum()[200] >= 1 - 1e-15
    actual = composed({"strategy": "experts", "expert": "expert", "top_p": 1, "alpha": 0}, world)
    assert np.isfinite(actual).all()


def test_masked_token_is_never_picked() -> None:
    """The reference of contrastive decoding forgets its mask in the greedy path."""
    base, anti = np.array([0.0, -1.0, -9.0]), np.array([0.0, -1.0, -60.0])
    plan = plan_of({"strategy": "contrastive", "amateur": "anti", "form": "original"})
    actual = reference_logprobs(plan, torch.from_numpy(np.stack([base, anti])[:, None]))[0]
    assert (base - anti).argmax() == 2
    assert actual.argmax() != 2
    assert actual[2] == -torch.inf


def test_equal_tokens_at_the_edge_of_a_nucleus_are_kept_out() -> None:
    base = np.log(np.array([0.5, 0.25, 0.25]))
    plan = plan_of({"strategy": "experts", "expert": "expert", "alpha": 0, "top_p": 0.75})
    actual = reference_logprobs(plan, torch.from_numpy(base[None, None]))[0]
    assert actual.isfinite().tolist() == [True, True, False]
