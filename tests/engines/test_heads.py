"""Compositions that ask a head of their base, against their papers' formulas in NumPy over transformers' own states."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from motet.composers.plan import Plan, single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import OFF, Speculation
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, Member, TorchEngine
from motet.models.heads import RouterHead, Seen
from tests.engines.conftest import HEADS, PlainLoop
from tests.engines.test_exactness import PLANS, plan_of
from tests.engines.test_rules import run, text_of

TOLERANCE = 1e-4
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"strategy": "routed", "assistant": "qwen"}),
    ("llama", {"strategy": "routed", "assistant": "gpt2", "threshold": 0.8}),
    ("gemma", {"strategy": "routed", "assistant": "llama-b", "threshold": None}),
    ("llama-b", {"strategy": "routed", "assistant": "llama", "threshold": 0.5}),
    ("gpt2", {"strategy": "routed", "assistant": "mistral", "threshold": 0.7}),
    ("llama-b", {"strategy": "routed", "assistant": "gemma", "threshold": None}),
    ("mistral", {"strategy": "adaptive_temperature"}),
    ("qwen", {"strategy": "adaptive_temperature", "expert": "llama-b", "antiexpert": "gpt2"}),
]


def request_for(plan: Plan, number: int, **sampling: Any) -> GenerationRequest:
    """Streams read texts of their own; eleven tokens are scored, then some are drawn."""
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "trace_top": 1}
    params = SamplingParams(**given | sampling)
    contexts = tuple(text_of(10 * number + k, 5 + 3 * k) for k in range(len(plan.streams)))
    return GenerationRequest(f"r{number}", plan, contexts, params, text_of(number, 11))


@torch.no_grad()
def states(plain: PlainLoop, model: str, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden state (H,) and log-probs (V,) behind the ids, float64."""
    told = plain.models[model](torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    logits = told.logits[0, -1].double().numpy()
    return told.hidden_states[-1][0, -1].double().numpy(), logits - np.logaddexp.reduce(logits)


def sigmoid_of(plain: PlainLoop, model: str, hidden: np.ndarray, logprobs: np.ndarray) -> float:
    """σ(w·h + b) of the model's head, or σ(s) of its router."""
    head = HEADS[model][1](len(hidden))
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    if isinstance(head, RouterHead):
        embeddings = plain.models[model].get_input_embeddings()
        assert isinstance(embeddings, torch.nn.Embedding)
        own = embeddings.weight.detach().double().numpy()[int(logprobs.argmax())]
        score = routed_score(weights, hidden, own, np.exp(logprobs), head.top, len(head.blocks))
    else:
        score = float(weights["linear.weight"][0] @ hidden + weights["linear.bias"][0])
    return 1 / (1 + math.exp(-score))


def routed_score(
    weights: dict[str, np.ndarray], hidden: np.ndarray, token: np.ndarray, probs: np.ndarray, top: int, blocks: int
) -> float:
    """A residual network on the hidden state, the embedding of the likeliest token, and probabilities."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def normed(name: str, x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    likeliest = np.zeros(top)
    found = np.sort(probs)[::-1][:top]
    likeliest[: len(found)] = found
    x = linear("enter", np.concatenate([normed("hidden_norm", hidden), normed("token_norm", token), likeliest]))
    for block in range(blocks):
        inner = linear(f"blocks.{block}.up", normed(f"blocks.{block}.norm", x))
        gelu = np.array([0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in inner])
        x = x + linear(f"blocks.{block}.down", gelu)
    return float(linear("leave", normed("norm", x))[0])


def formula(
    plain: PlainLoop, request: GenerationRequest, fields: dict[str, Any], past: list[int]
) -> tuple[np.ndarray, float]:
    """(log-probs of the next token, what the head says): Co-LLM's choice of a model or its mixture; softmax(l / τ);
    the base shifted by so much."""
    members = zip(request.plan.streams, request.contexts, strict=True)
    (hidden, own), *others = [states(plain, stream.model, [*context, *past]) for stream, context in members]
    share = sigmoid_of(plain, request.plan.streams[0].model, hidden, own)
    if fields["strategy"] == "routed":
        threshold, other = fields.get("threshold", 0.5), others[0][1]
        if threshold is None:
            return np.log((1 - share) * np.exp(own) + share * np.exp(other)), share
        return (other if share > threshold else own), share
    low, high = (0.1, 2.0) if others else (0.4, 2.5)
    told = low + (high - low) * share
    z = own + told * (others[0][1] - others[1][1]) if others else own / told
    return z - np.logaddexp.reduce(z), told


def check(
    plain: PlainLoop, request: GenerationRequest, fields: dict[str, Any], outputs: list[TokenOutput]
) -> list[float]:
    """The readings, all as they should be, as the log-probs and tokens are."""
    readings: list[float] = []
    past: list[int] = []
    for output in outputs:
        wanted, reading = formula(plain, request, fields, past)
        assert output.trace is not None
        assert output.trace.head == pytest.approx(reading, abs=TOLERANCE)
        assert output.logprob == pytest.approx(wanted[output.token], abs=TOLERANCE)
        assert output.forced or output.token == int(wanted.argmax())
        past.append(output.token)
        readings.append(reading)
    return readings


@pytest.mark.parametrize("case", range(len(CASES)))
async def test_it_is_its_formula(engine: TorchEngine, plain_loop: PlainLoop, case: int) -> None:
    base, fields = CASES[case]
    request = request_for(plan_of(base, fields), case)
    readings = check(plain_loop, request, fields, await run(engine, request))
    middle = fields.get("threshold") or 0.5 if fields["strategy"] == "routed" else 1.0
    assert min(readings) < middle < max(readings)


async def test_beside_all_others_it_is_its_formula(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    own = [request_for(plan_of(*case), n) for n, case in enumerate(CASES)]
    others = [request_for(plan, 50 + n, max_tokens=3) for n, plan in enumerate(PLANS)]
    answers = await asyncio.gather(*(run(engine, request) for request in (*own, *others)))
    for request, (_, fields), outputs in zip(own, CASES, answers, strict=False):
        check(plain_loop, request, fields, outputs)


async def tokens_of(engine: TorchEngine, plan: Plan) -> list[int]:
    sampling = SamplingParams(max_tokens=8, temperature=0.8, seed=3, ignore_eos=True)
    request = GenerationRequest("r", plan, (text_of(3, 9),) * len(plan.streams), sampling)
    return [output.token for output in await run(engine, request)]


@pytest.mark.parametrize(
    ("assistant", "threshold", "alike"),
    [("qwen", 1.0, None), ("qwen", 0.0, "qwen"), ("own", None, None), ("own", 0.5, None)],
)
@pytest.mark.parametrize("base", ["llama", "llama-b"])
async def test_shut_and_open_heads_are_one_model(
    engine: TorchEngine, base: str, assistant: str, threshold: float | None, alike: str | None
) -> None:
    """A gate and a router; and so is a base that is its own assistant."""
    other = base if assistant == "own" else assistant
    plan = plan_of(base, {"strategy": "routed", "assistant": other, "threshold": threshold})
    assert await tokens_of(engine, plan) == await tokens_of(engine, single(alike or base))


@torch.no_grad()
def test_a_share_of_nothing_is_above_a_threshold_of_nothing() -> None:
    head = RouterHead(4, 3, 2, 1)
    head.leave.bias.fill_(-1e4)
    assert float(head.reading(Seen(torch.ones(1, 4), torch.ones(1, 5), torch.nn.Embedding(5, 4)))) > 0


@pytest.mark.parametrize("base", ["qwen", "mistral"])
async def test_what_a_head_scales_by_nothing_is_the_base(engine: TorchEngine, base: str) -> None:
    """An expert that is its own antiexpert; a schedule of scale 0."""
    pair = {"expert": "llama-b", "antiexpert": "llama-b"} if base == "qwen" else {}
    schedule = {"points": [{"token": 0, "scale": float(base == "qwen")}]}
    plan = plan_of(base, {"strategy": "adaptive_temperature", "schedule": schedule, **pair})
    assert await tokens_of(engine, plan) == await tokens_of(engine, single(base))


@pytest.mark.parametrize("draft", ["base", "assistant", "ngram"])
@pytest.mark.parametrize(("base", "assistant"), [("llama", "llama-b"), ("llama-b", "llama")])
async def test_guesses_leave_answers_as_they_are(
    members: Mapping[str, Member], base: str, assistant: str, draft: str
) -> None:
    plan = plan_of(base, {"strategy": "routed", "assistant": assistant})
    requests = [request_for(plan, n, max_tokens=20, temperature=0.9 * (n > 1), seed=5) for n in (1, 2)]
    answers: list[list[TokenOutput]] = []
    for speculation in (Speculation(draft, 4), OFF):
        engine = TorchEngine(members, EngineSettings(speculation=speculation, adapts=False))
        answers += [await run(engine, request) for request in requests]
        stats = engine.stats()
        await engine.close()
        if speculation is not OFF and draft != "ngram":
            assert stats.draft_tokens > 0
        if draft == "base":  # its gate says beforehand which tokens it writes itself
            assert stats.accepted_tokens == stats.draft_tokens
    for found, wanted in zip(answers[:2], answers[2:], strict=True):
        assert [output.token for output in found] == [output.token for output in wanted]
        heads = [[output.trace.head for output in outputs if output.trace] for outputs in (found, wanted)]
        assert heads[0] == pytest.approx(heads[1], abs=TOLERANCE)
