"""Layer contrast in the engine, against DoLa's formula in NumPy over transformers' own hidden states in float64."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from motet.composers.exits import Depth
from motet.composers.plan import Plan, Prompt, Stream, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import GenerationRequest, SamplingParams, refuse_empty
from motet.engines.drafts import NGRAM, OFF, Speculation, draft_names, drafts_of
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, Member, TorchEngine, load_member
from motet.engines.torch.model import ModelWork
from tests.composers.test_laws import premature_layer
from tests.engines.test_exactness import PLANS
from tests.engines.test_rules import run, text_of
from tests.tiny import SHAPE

Array = NDArray[np.float64]
TOLERANCE = 1e-4
LAYERS = 6
DEEP: dict[str, Any] = {**SHAPE, "num_hidden_layers": LAYERS, "initializer_range": 0.1}
# embeddings and heads of their own and shared ones; scaled embeddings and soft caps; scaled states and logits
MAKERS = {
    "deep-llama": lambda: LlamaForCausalLM(LlamaConfig(**DEEP)),
    "deep-qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**DEEP, tie_word_embeddings=True)),
    "deep-gemma": lambda: Gemma2ForCausalLM(Gemma2Config(**DEEP, head_dim=12, final_logit_softcapping=3.0)),
    "deep-granite": lambda: GraniteForCausalLM(
        GraniteConfig(**DEEP, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0)
    ),
}
ALL = list(range(LAYERS))
MIDDLE = [2, 3, 4]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("deep-llama", {"layers": MIDDLE}),
    ("deep-llama", {"bucket": "low", "select": "entropy"}),
    ("deep-qwen", {"bucket": "high", "alpha": 0.5, "mask": 0.02}),
    ("deep-qwen", {"layers": [3]}),
    ("deep-gemma", {"layers": ALL, "mask": None, "alpha": 0.7}),
    ("deep-gemma", {"layers": ALL, "select": "entropy", "form": "extrapolation"}),
    ("deep-granite", {"layers": ALL, "form": "extrapolation", "alpha": 0.4}),
    ("deep-granite", {"bucket": "low", "base": {"model": "deep-granite", "temperature": 0.7}}),
]


@pytest.fixture(scope="module")
def deep_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for seed, (name, make) in enumerate(MAKERS.items()):
        torch.manual_seed(seed)
        paths[name] = tmp_path_factory.mktemp("deep") / name
        make().eval().save_pretrained(paths[name])
    return paths


@pytest.fixture(scope="module")
def deep(deep_paths: Mapping[str, Path]) -> dict[str, Member]:
    return {name: load_member(name, str(path), dtype=torch.float32) for name, path in deep_paths.items()}


@pytest.fixture(scope="module")
def exact(deep_paths: Mapping[str, Path]) -> dict[str, PreTrainedModel]:
    """The same weights in float64, in transformers."""
    return {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval()
        for name, path in deep_paths.items()
    }


@pytest.fixture
async def engine(members: Mapping[str, Member], deep: Mapping[str, Member]) -> AsyncIterator[TorchEngine]:
    for member in deep.values():
        member.cache.clear()
    engine = TorchEngine({**members, **deep}, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    yield engine
    await engine.close()


def plan_of(model: str, **fields: Any) -> Plan:
    composition = parse_composition({"strategy": "layer_contrast", **fields})
    depth = Depth(LAYERS, tied=model in ("deep-qwen", "deep-gemma"))
    return build_plan(composition, model, known=list(MAKERS), token_id=lambda _: None, depth=depth)


def request_of(plan: Plan, number: int, **sampling: Any) -> GenerationRequest:
    """Eleven tokens are scored, then some are drawn."""
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "trace_top": 1}
    contexts = (text_of(number, 9),) * len(plan.streams)
    return GenerationRequest(f"r{number}", plan, contexts, SamplingParams(**given | sampling), text_of(50 + number, 11))


@torch.no_grad()
def behind(model: PreTrainedModel, ids: list[int]) -> list[Array]:
    """Log-probs (V,) behind 0, 1, … and all layers: the final norm and the output head on the hidden states that
    transformers tells, with what each family does to logits."""
    told: Any = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    config: Any = model.config
    parts: Any = model
    *states, last = [state[0, -1] for state in told.hidden_states]  # the last has been through the norm
    found: list[Array] = []
    for state in [*(parts.model.norm(state) for state in states), last]:
        logits = parts.lm_head(state).numpy() / getattr(config, "logits_scaling", 1.0)
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * np.tanh(logits / cap)
        found.append(logits - np.logaddexp.reduce(logits))
    return found


def formula(model: PreTrainedModel, ids: list[int], plan: Plan, fields: Mapping[str, Any]) -> tuple[Array, int]:
    """(log-probs of the next token, the early layer): `softmax(log q_N − α log q_M)` where q_N is at least m of its
    largest value (DoLa, Chuang et al. 2024), and the line through both layers."""
    exit = plan.exits[0]
    *_, final = logprobs = behind(model, ids)
    layer = premature_layer(final, {layer: logprobs[layer] for layer in exit.layers}, exit.select)
    temperature = plan.streams[0].temperature
    late, early = (x / temperature - np.logaddexp.reduce(x / temperature) for x in (final, logprobs[layer]))
    alpha, share = fields.get("alpha", 1.0), fields.get("mask", 0.1)
    z = (1 + alpha if fields.get("form") == "extrapolation" else 1) * late - alpha * early
    if share is not None:
        z = np.where(np.exp(final) >= share * np.exp(final).max() * (1 - 1e-9), z, -np.inf)
    return z - np.logaddexp.reduce(z), layer


def check(
    exact: Mapping[str, PreTrainedModel],
    request: GenerationRequest,
    fields: Mapping[str, Any],
    outputs: list[TokenOutput],
) -> list[int]:
    """The layers, all as they should be, as tokens, log-probs and the early layer's own log-probs are."""
    model, chosen = exact[request.plan.streams[0].model], list[int]()
    past = list(request.contexts[0])
    for output in outputs:
        wanted, layer = formula(model, past, request.plan, fields)
        assert output.trace is not None
        assert output.trace.layers == (layer,)
        assert output.trace.member_logprobs[1] == pytest.approx(behind(model, past)[layer][output.token], abs=TOLERANCE)
        assert output.logprob == pytest.approx(wanted[output.token], abs=TOLERANCE)
        assert output.forced or output.token == int(wanted.argmax())
        past.append(output.token)
        chosen.append(layer)
    assert len(outputs) == 19
    return chosen


@pytest.mark.parametrize("case", range(len(CASES)))
async def test_it_is_its_formula(engine: TorchEngine, exact: dict[str, PreTrainedModel], case: int) -> None:
    model, fields = CASES[case]
    request = request_of(plan_of(model, **fields), case)
    check(exact, request, fields, await run(engine, request))


async def test_beside_all_others_every_row_has_its_own_layer(
    engine: TorchEngine, exact: dict[str, PreTrainedModel]
) -> None:
    """The authors' code takes one layer for a whole batch, by the mean of its rows."""
    own = [request_of(plan_of(model, **fields), n) for n, (model, fields) in enumerate(CASES)]
    own += [request_of(plan_of("deep-llama", layers=MIDDLE), 20 + n) for n in range(4)]
    fields = [fields for _, fields in CASES] + [{"layers": MIDDLE}] * 4
    others = [GenerationRequest(f"o{n}", p, (text_of(n, 7),) * len(p.streams), SamplingParams(3)) for n, p in ALONE]
    answers = await asyncio.gather(*(run(engine, request) for request in (*own, *others)))
    chosen = [
        check(exact, request, each, outputs) for request, each, outputs in zip(own, fields, answers, strict=False)
    ]
    assert any(len({layers[place] for layers in chosen[-4:]}) > 1 for place in range(11, 19))
    assert len(set(chosen[0])) > 1


ALONE = list(enumerate(PLANS))


def plain(model: str, temperature: float = 1.0) -> Plan:
    return Plan((Stream("base", model, temperature=temperature),))


@pytest.mark.parametrize("model", MAKERS)
@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({"layers": ALL, "alpha": 0, "mask": None}, 1.0),
        ({"layers": [LAYERS], "mask": None, "form": "extrapolation"}, 1.0),
        ({"layers": [LAYERS], "mask": None, "form": "extrapolation", "alpha": -0.4}, 1.0),
        ({"layers": [LAYERS], "mask": None, "alpha": 0.5}, 2.0),  # L − L / 2
    ],
)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "seed": 3}])
async def test_without_a_contrast_it_is_the_plain_model(
    engine: TorchEngine, model: str, fields: dict[str, Any], temperature: float, drawn: dict[str, Any]
) -> None:
    asked, alike = request_of(plan_of(model, **fields), 5, **drawn), request_of(plain(model, temperature), 5, **drawn)
    outputs, expected = await asyncio.gather(run(engine, asked), run(engine, alike))
    assert [output.token for output in outputs] == [output.token for output in expected]
    for output, other in zip(outputs, expected, strict=True):
        assert output.logprob == pytest.approx(other.logprob, abs=1e-5)


async def test_all_layers_as_a_candidate_are_never_farthest(engine: TorchEngine) -> None:
    outputs = await run(engine, request_of(plan_of("deep-llama", layers=[2, LAYERS]), 7))
    assert {output.trace.layers for output in outputs if output.trace} == {(2,)}


async def test_a_seed_draws_the_same_alone_and_beside_others(engine: TorchEngine) -> None:
    plan = plan_of("deep-gemma", layers=ALL)
    drawn = {"temperature": 1.0, "seed": 11, "top_p": 0.9, "max_tokens": 20}
    alone = await run(engine, request_of(plan, 1, **drawn))
    busy = [request_of(plan_of(model, **fields), n) for n, (model, fields) in enumerate(CASES)]
    beside, *_ = await asyncio.gather(*(run(engine, request) for request in (request_of(plan, 1, **drawn), *busy)))
    assert [output.token for output in beside] == [output.token for output in alone]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.2, "seed": 5}])
async def test_guesses_of_the_text_change_nothing(deep: dict[str, Member], drawn: dict[str, Any]) -> None:
    """Every verified position has its own layer, too."""
    plan = plan_of("deep-llama", layers=MIDDLE)
    engine = TorchEngine(deep, EngineSettings(adapts=False))
    answers: list[list[TokenOutput]] = []
    for wish in (OFF, Speculation(NGRAM)):
        contexts = ((5, 6, 7, 8) * 6,) * 2
        given: dict[str, Any] = {"temperature": 0.0, **drawn}
        sampling = SamplingParams(40, ignore_eos=True, trace_top=1, **given)
        request = GenerationRequest("r", plan, contexts, sampling, speculation=wish)
        answers.append(await run(engine, request))
    guessed = engine.stats().draft_tokens
    await engine.close()
    assert guessed > 0
    for found, expected in zip(*answers, strict=True):
        assert found.token == expected.token
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert found.trace is not None
        assert expected.trace is not None
        assert found.trace.layers == expected.trace.layers


def stacked() -> Plan:
    """Two exits of one base, and members that may guess."""
    parts = [
        {"strategy": "layer_contrast", "layers": [0, 1], "alpha": 0.5},
        {"strategy": "layer_contrast", "layers": [1], "select": "entropy", "alpha": 0.2, "mask": None},
        {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"},
    ]
    known = ["llama", "llama-b", "llama-c"]
    return build_plan(
        parse_composition({"compose": parts}), "llama", known=known, token_id=lambda _: None, depth=Depth(2)
    )


def test_a_base_that_is_left_early_guesses_nothing() -> None:
    assert drafts_of(plan_of("deep-llama", layers=ALL), None) == [NGRAM]
    assert draft_names(plan_of("deep-llama", layers=ALL)) == [NGRAM]
    assert drafts_of(stacked(), None) == [1, 2, NGRAM]
    assert draft_names(stacked()) == ["expert", "antiexpert", "llama-b", "llama-c", NGRAM]
    assert [drafts_of(stacked(), name) for name in ("base", "early", "expert")] == [[], [], [1]]


async def test_two_early_exits_in_a_stack_that_a_member_drafts(engine: TorchEngine) -> None:
    answers: list[list[tuple[int, tuple[int, ...]]]] = []
    for wish in (OFF, Speculation("expert")):
        sampling = SamplingParams(12, temperature=0.0, ignore_eos=True, trace_top=1)
        request = GenerationRequest("r", stacked(), (text_of(4, 9),) * 5, sampling, speculation=wish)
        outputs = await run(engine, request)
        answers.append([(output.token, output.trace.layers if output.trace else ()) for output in outputs])
    assert answers[0] == answers[1]
    assert {len(layers) for _, layers in answers[0]} == {2}
    assert {layers[1] for _, layers in answers[0]} == {1}


def test_early_exits_take_no_keys_and_values(engine: TorchEngine) -> None:
    request = request_of(plan_of("deep-llama", layers=ALL), 3)
    assert engine.check(request) == engine.check(request_of(single("deep-llama"), 3))


async def test_scored_text_is_computed_in_chunks_of_few_rows(deep: dict[str, Member]) -> None:
    """Early rows count as distributions: of a long text, a step has fewer positions."""
    engine = TorchEngine(deep)
    whole = engine._core.scheduler.max_rows  # pyright: ignore[reportPrivateUsage]
    request = request_of(plan_of("deep-llama", layers=ALL), 3)
    expected = await run(engine, request)
    steps = engine.stats().steps
    engine._core.scheduler.max_rows = 2 * (1 + LAYERS)  # pyright: ignore[reportPrivateUsage]
    outputs = await run(engine, request)
    assert engine.stats().steps - steps >= 11 // 2 + 8
    await engine.close()
    assert whole > 2 * (1 + LAYERS)
    assert [output.token for output in outputs] == [output.token for output in expected]
    assert [output.logprob for output in outputs] == pytest.approx([output.logprob for output in expected], abs=1e-5)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@torch.inference_mode()
def test_quantised_members_leave_early_by_their_own_head(deep_paths: dict[str, Path], quantization: Any) -> None:
    member = load_member("q", str(deep_paths["deep-gemma"]), dtype=torch.float32, quantization=quantization)
    member.cache.resize(1, 16)
    logits = member.forward([ModelWork(0, 0, text_of(1, 12), 3, (2, LAYERS))])
    last, second, whole = logits[:3], logits[3:6], logits[6:]
    assert torch.equal(whole, last)
    model: Any = member.model
    seen: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0])

    hook = model.model.layers[2].register_forward_pre_hook(keep)
    member.forward([ModelWork(0, 0, text_of(1, 12), 12)])
    hook.remove()
    raw = model.lm_head(model.model.norm(seen[0][0, -3:]))
    assert torch.allclose(second, 3.0 * (raw / 3.0).tanh(), atol=1e-5)


async def test_a_model_of_other_parts_says_why_not(tmp_path: Path) -> None:
    """This one projects what its norm has made before the head reads it."""
    config = OPTConfig(
        vocab_size=131,
        hidden_size=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=24,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).eval().save_pretrained(tmp_path)
    member = load_member("opt", str(tmp_path), dtype=torch.float32)
    assert member.exits is None
    engine = TorchEngine({"opt": member})
    composition = parse_composition({"strategy": "layer_contrast", "layers": [1]})
    plan = build_plan(composition, "opt", known=["opt"], token_id=lambda _: None, depth=Depth(2))
    assert engine.supports(single("opt")) is None
    assert "cannot be left early" in (engine.supports(plan) or "")
    await engine.close()


def test_what_is_no_plan() -> None:
    early = plan_of("deep-llama", layers=ALL).streams[1]
    base, other = Stream("base", "deep-llama"), Stream("other", "deep-qwen")
    for streams in (
        (early, base),
        (base, early, other),
        (other, early),
        (Stream("b", "deep-llama", 1, Prompt("")), early),
    ):
        with pytest.raises(ValueError, match="early exits are of the base"):
            Plan(streams)
    request = GenerationRequest("r", Plan((base, early)), ((5, 6), (5, 7)), SamplingParams(1))
    with pytest.raises(ValueError, match="'early' is an early exit"):
        refuse_empty(request)


def test_an_open_plan_is_not_run(engine: TorchEngine) -> None:
    composition = parse_composition({"strategy": "layer_contrast"})
    plan = build_plan(composition, "deep-llama", known=list(MAKERS), token_id=lambda _: None)
    assert "without knowing how deep" in (engine.supports(plan) or "")
