"""Adapters in the engine: what peft computes with them beside their base, as rows of the base's own forward; slots and
prefixes are kept apart."""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.composers.plan import Plan, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import NGRAM, Speculation
from motet.engines.torch import (
    Adapter,
    EngineCore,
    EngineSettings,
    Member,
    TorchEngine,
    attach_adapter,
    load_member,
    soft_prompt,
)
from motet.engines.torch.adapters import Weights
from motet.engines.torch.low_rank import Adapted, Rows, adding
from motet.engines.torch.model import ModelWork
from motet.models.info import Quantization
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import assert_same
from tests.engines.test_rules import run, scored_and_drawn, text_of
from tests.tiny import MAKERS

ANSWER = 4
request_for = partial(scored_and_drawn, max_tokens=ANSWER)
RANK, ALPHA = 3, 7  # a scale that is no power of two
BACKBONES = {
    "one": "llama",
    "two": "llama",
    "windowed": "mistral",
    "scaled": "gemma",
    "biased": "qwen",
    "turned": "gpt2",
}
TARGETS = {"one": "all-linear", "two": ["q_proj", "down_proj"], "turned": ["c_attn", "c_fc"]}
COMPOSITIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"strategy": "proxy_tuning", "expert": "one", "antiexpert": "llama"}),
    ("one", {"strategy": "proxy_tuning", "expert": "two", "antiexpert": "llama", "alpha": 0.7}),
    ("qwen", {"strategy": "proxy_tuning", "expert": "scaled", "antiexpert": "gemma"}),
    ("one", {"strategy": "mixture", "members": ["one", {"model": "two", "weight": 0.4}, "llama"]}),
    ("llama", {"strategy": "discriminator", "wanted": "one", "unwanted": "two", "omega": 3, "mass": 1}),
    ("one", {"strategy": "layer_contrast", "layers": [1]}),
]


def with_peft(name: str, base: PreTrainedModel) -> Any:
    """A copy of the base with a trained adapter beside its weights, as peft computes it."""
    torch.manual_seed(sum(name.encode()))
    targets = TARGETS.get(name, ["q_proj", "v_proj", "o_proj", "gate_proj"])
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", target_modules=targets, fan_in_fan_out=name == "turned"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cast(Any, get_peft_model(copy.deepcopy(base), config)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def weights_of(adapted: nn.Module) -> Weights:
    """A and scaled B of every linear that peft has wrapped, by its name in the base."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in cast(Any, adapted).named_modules():
        if hasattr(module, "lora_A"):
            pair = module.lora_A["default"].weight, module.lora_B["default"].weight * module.scaling["default"]
            found[name.removeprefix("base_model.model.")] = pair
    return found


@pytest.fixture(scope="module")
def pefts(plain_loop: PlainLoop) -> dict[str, Any]:
    return {name: with_peft(name, plain_loop.models[base]) for name, base in BACKBONES.items()}


@pytest.fixture
def adapters(members: Mapping[str, Member], pefts: Mapping[str, Any]) -> dict[str, Adapter]:
    return {name: attach_adapter(name, members[base], weights_of(pefts[name])) for name, base in BACKBONES.items()}


@pytest.fixture
def plain(plain_loop: PlainLoop, pefts: Mapping[str, Any]) -> PlainLoop:
    """Without the wrapper's own shell, so that hidden states and names are the model's."""
    wide = {name: copy.deepcopy(adapted).double().base_model.model for name, adapted in pefts.items()}
    return PlainLoop({**plain_loop.models, **wide})


@pytest.fixture
async def engine(members: Mapping[str, Member], adapters: Mapping[str, Adapter]) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine({**members, **adapters}, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    yield engine
    await engine.close()


def plan_of(base: str, composition: dict[str, Any]) -> Plan:
    return build_plan(parse_composition(composition), base, known=[*MAKERS, *BACKBONES], token_id=lambda _: None)


def plans() -> list[Plan]:
    return [single(name) for name in (*BACKBONES, *dict.fromkeys(BACKBONES.values()))] + [
        plan_of(*written) for written in COMPOSITIONS
    ]


async def test_a_mixed_batch_is_peft(engine: TorchEngine, plain: PlainLoop) -> None:
    """Models, their adapters and compositions of both, each as peft has it, in any order of slots; and then once more
    behind what the caches keep."""
    requests = [request_for(plan, seed) for seed, plan in enumerate(plans())]
    for _ in range(2):
        answers = await asyncio.gather(*(run(engine, request) for request in requests))
        for request, outputs in zip(requests, answers, strict=True):
            assert_same(outputs, plain.greedy(request.plan, request.contexts, request.forced, ANSWER))
    forwards = engine.stats().forward_seconds
    assert not forwards.keys() & BACKBONES.keys(), "the streams of a backbone were not rows of its own forward"
    assert engine.stats().prefix_hits > 0


async def test_a_composition_of_a_model_and_its_adapter_is_one_forward(
    members: Mapping[str, Member], adapters: Mapping[str, Adapter]
) -> None:
    member = members["llama"]
    core = EngineCore({**members, **adapters}, EngineSettings())
    plan = plan_of("two", {"strategy": "proxy_tuning", "expert": "one", "antiexpert": "llama"})
    core.add(core.group(request_for(plan, 1, max_tokens=6)))
    before, first = member.num_forwards, core.num_steps
    while core.step() is not None:
        pass
    assert member.num_forwards - before == core.num_steps - first > 6


@pytest.mark.parametrize("draft", [NGRAM, "expert", "antiexpert"])
@pytest.mark.parametrize("fewer_bits", [False, True])
async def test_guesses_change_nothing(
    members: Mapping[str, Member],
    twofold: Mapping[str, Member],
    pefts: Mapping[str, Any],
    plain: PlainLoop,
    draft: str,
    fewer_bits: bool,
) -> None:
    """Also those that the base makes for its adapters with its weights in fewer bits."""
    bases = twofold if fewer_bits else members
    adapters = {name: attach_adapter(name, bases[base], weights_of(pefts[name])) for name, base in BACKBONES.items()}
    engine = TorchEngine({**bases, **adapters}, EngineSettings(prefill_chunk=8, adapts=False))
    plan = plan_of("one", {"strategy": "proxy_tuning", "expert": "two", "antiexpert": "llama"})
    asked = request_for(plan, 3, max_tokens=9)
    guessed = GenerationRequest(
        "g", plan, asked.contexts, asked.sampling, asked.forced, speculation=Speculation(draft, 4)
    )
    others = [request_for(single(name), seed) for seed, name in enumerate(("one", "two", "llama"))]
    outputs, *_ = await asyncio.gather(*(run(engine, request) for request in (guessed, *others)))
    assert_same(outputs, plain.greedy(plan, asked.contexts, asked.forced, 9))
    assert draft == NGRAM or engine.stats().draft_tokens > 0
    await engine.close()


async def test_a_cached_prefix_is_the_adapters_own(engine: TorchEngine, plain: PlainLoop) -> None:
    requests = [request_for(single(name), 1) for name in ("llama", "one", "two")]
    for again in (False, True):
        for request in requests:
            generation = engine.generate(request)
            outputs = [output async for output in generation]
            assert_same(outputs, plain.greedy(request.plan, request.contexts, request.forced, ANSWER))
            assert generation.cached_tokens == (len(request.contexts[0]) - 1 if again else 0)


async def test_choices_that_are_stopped_leave_the_others_alone(engine: TorchEngine, plain: PlainLoop) -> None:
    kept = [request_for(plan, seed, max_tokens=8) for seed, plan in enumerate(plans()[-6:-1])]
    stopped = [engine.generate(request_for(single(name), 20, max_tokens=40)) for name in ("one", "llama", "two")]
    tasks = [asyncio.create_task(run(engine, request)) for request in kept]
    for generation in stopped:
        await anext(generation)
        await generation.aclose()
    for request, task in zip(kept, tasks, strict=True):
        assert_same(await task, plain.greedy(request.plan, request.contexts, request.forced, 8))


async def test_a_soft_prompt_stands_in_front_of_an_adapter(
    members: Mapping[str, Member], adapters: Mapping[str, Adapter], plain: PlainLoop
) -> None:
    """Embeddings of a text are that text, also to an adapter."""
    member, text, rest = members["llama"], text_of(1, 9), text_of(2, 6)
    prompt = soft_prompt("prompt", adapters["one"], member.model.get_input_embeddings()(torch.tensor(text)))
    assert (prompt.info.backbone, prompt.adapter) == ("one", adapters["one"].adapter)
    engine = TorchEngine({"llama": member, "one": adapters["one"], "prompt": prompt}, EngineSettings())
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True, temperature=0.0)
    outputs = await run(engine, GenerationRequest("p", single("prompt"), (rest,), params))
    assert_same(outputs, plain.greedy(single("one"), ((*text, *rest),), (), ANSWER))
    await engine.close()


async def test_it_comes_and_goes_while_others_answer(
    members: Mapping[str, Member], engine: TorchEngine, plain: PlainLoop, pefts: Mapping[str, Any]
) -> None:
    """A backbone that shall leave stays as long as an adapter of it."""
    member = members["llama"]
    late = attach_adapter("late", member, weights_of(pefts["two"]))
    engine.attach(late)
    request = request_for(single("late"), 2)
    task = asyncio.create_task(run(engine, request))
    await asyncio.sleep(0)
    engine.detach("late", after=0.0)
    engine.detach("llama", after=0.0)
    assert_same(await task, plain.greedy(single("two"), request.contexts, request.forced, ANSWER))
    await run(engine, request_for(single("one"), 3))  # some steps
    assert "late" not in engine.models
    assert "llama" in engine.models
    places = [module for module in member.model.modules() if isinstance(module, Adapted)]
    assert places
    assert not any(late.adapter in module.added for module in places)


@torch.no_grad()
def test_in_bfloat16_it_is_as_exact_as_merged(paths: Mapping[str, Path], pefts: Mapping[str, Any]) -> None:
    """Both against float32: what is rounded beside the weights is no worse than what is rounded into them."""
    ids = text_of(5, 40)
    small = {name: (0.2 * down, 0.2 * up) for name, (down, up) in weights_of(pefts["one"]).items()}
    wide, beside = (load_member("llama", str(paths["llama"]), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    merged = load_member("merged", str(paths["llama"]), dtype=torch.bfloat16, adapt=lambda model: _added(model, small))
    adapter = attach_adapter("a", beside, small)
    exact = logprobs(wide, ids, attach_adapter("a", wide, small).adapter)
    errors = [
        float((logprobs(*run) - exact).abs().mean()) for run in ((beside, ids, adapter.adapter), (merged, ids, 0))
    ]
    unlike = float((logprobs(beside, ids, 0) - exact).abs().mean())
    assert errors[0] < 1.3 * errors[1] < 0.5 * unlike


def logprobs(member: Member, ids: Sequence[int], adapter: int) -> Tensor:
    """(N, V) of a text in pieces of unequal length."""
    member.cache.resize(1, len(ids))
    cuts = [0, 11, 12, 13, len(ids)]
    work = [ModelWork(0, a, list(ids[a:b]), b - a, adapter=adapter) for a, b in pairwise(cuts)]
    found = torch.cat([member.forward([item]) for item in work]).double().log_softmax(-1)
    member.cache.clear()
    return found


def _added(model: PreTrainedModel, weights: Weights) -> PreTrainedModel:
    for name, (down, up) in weights.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        linear.weight.data = (linear.weight.float() + up @ down).to(linear.weight.dtype)
    return model


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_beside_quantised_weights(
    paths: Mapping[str, Path], pefts: Mapping[str, Any], quantization: Quantization
) -> None:
    """The product with the stored weights and the low rank are added: the layer's output moves by B A x."""
    member = load_member("q", str(paths["llama"]), dtype=torch.float32, quantization=quantization)
    name, (down, up) = next((name, pair) for name, pair in weights_of(pefts["one"]).items() if "down_proj" in name)
    x = torch.randn(1, 5, down.shape[1])
    plain = member.model.get_submodule(name)(x)
    adapter = attach_adapter("a", member, {name: (down, up)})
    found = cast(Adapted, member.model.get_submodule(name))
    with adding({adapter.adapter: Rows.of([0, 3], x.device)}):
        moved = found(x) - plain
    torch.testing.assert_close(moved[0, [0, 3]], (x @ down.t() @ up.t())[0, [0, 3]], atol=1e-4, rtol=1e-4)
    assert not moved[0, [1, 2, 4]].any()


def test_what_cannot_be_served_is_refused(members: Mapping[str, Member], pefts: Mapping[str, Any]) -> None:
    member, weights = members["llama"], dict(weights_of(pefts["one"]))
    name, (down, up) = next(iter(weights.items()))
    with pytest.raises(ValueError, match="no linear of all tokens that is called lm_head"):
        attach_adapter("a", member, {"lm_head": (down, up)})
    with pytest.raises(ValueError, match=r"\[3, 47\] and \[48, 3\] are no low rank of a linear \[48, 48\] of 'llama'"):
        attach_adapter("a", member, {name: (down[:, 1:], up)})
    with pytest.raises(ValueError, match="not finite in float32"):
        attach_adapter("a", member, {name: (down / 0, up)})
    assert set(member.linears) == set(weights), "all linears but the head"
