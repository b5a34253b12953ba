"""Structured outputs mean the same in both engines: the same tokens, the same log-probs."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from motet.composers.plan import Plan, single
from motet.composers.rules import DivergenceRule
from motet.engines.base import Grammar, GrammarFailed, NoTokenPossible
from motet.engines.grammars import Grammars
from motet.engines.outputs import TokenOutput
from motet.engines.torch import TorchEngine
from motet.engines.vllm.engine import VllmEngine
from tests.vllm.models import EOS, TOKENIZER, VOCAB
from tests.vllm.requests import (
    PLANS,
    SPLIT_PLANS,
    answer,
    answers,
    assert_alike,
    plan_of,
    request_for,
    rng_of,
    tokens,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
PROXY = plan_of("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"})
CONTRASTIVE = plan_of("mistral", {"strategy": "contrastive", "amateur": "llama", "alpha": 0.9})
GRAMMARS = Grammars(TOKENIZER, VOCAB)
PLATE = r"[a-c]{2,4}-[0-9]+|none"
SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Ay", "Bree"]}, "year": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["town", "year"],
    "additionalProperties": False,
}


def of_regex(regex: str) -> Grammar:
    return GRAMMARS.compile(f"start: /{regex}/")


def of_schema(schema: dict[str, Any]) -> Grammar:
    return GRAMMARS.compile(f"start: %json {json.dumps(schema | {'x-guidance': {'whitespace_flexible': False}})}")


def said(outputs: Sequence[TokenOutput], choice: int = 0) -> str:
    return TOKENIZER.decode([o.token for o in outputs if o.choice == choice and not o.forced and o.token != EOS])


@pytest.mark.parametrize("plan", [single("gemma"), PROXY, CONTRASTIVE], ids=["plain", "proxy", "contrastive"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0, "trace_top": 2},
        {"temperature": 1.0, "seed": 3, "n": 2, "top_p": 0.9},
        {"temperature": 1.0, "seed": 4, "min_tokens": 9, "bad_words": (tuple(TOKENIZER.encode("ab")),)},
    ],
    ids=["traced", "n", "masks"],
)
async def test_answers(plan: Plan, sampling: dict[str, Any], engine: VllmEngine, embedded: TorchEngine) -> None:
    """The contrastive set of plausible tokens is narrow: it gives way to the grammar."""
    rng = rng_of(plan)
    forced = tokens(rng, 5)  # scored text, to which no grammar holds
    request = request_for(
        plan, rng, forced=forced, max_tokens=30, ignore_eos=False, grammar=of_regex(PLATE), **sampling
    )
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    for choice in range(request.n):
        last = [output for output in ours if output.choice == choice][-1]
        assert last.finish == "length" or re.fullmatch(PLATE, said(ours, choice))


async def test_mixed_batch(engine: VllmEngine, embedded: TorchEngine) -> None:
    """Rows with other grammars and with none, over all strategies, while memory runs out."""
    rng = random.Random(11)  # texts whose draws lie on no boundary between two tokens
    bound = [of_regex(PLATE), of_schema(SCHEMA), None, of_regex("[0-9a-f]+")]
    requests = [
        request_for(
            plan,
            rng,
            context=tokens(rng, rng.randrange(40, 130)),
            max_tokens=rng.randrange(20, 60),
            ignore_eos=False,
            # by rank tokens are ruled out altogether, and a grammar may allow nothing else
            grammar=None if isinstance(plan.rule, DivergenceRule) else bound[number % len(bound)],
            temperature=1.0,
            seed=number,
        )
        for number, plan in enumerate(PLANS)
    ]
    ours = await answers(engine, requests)
    for one, other in zip(ours, await answers(embedded, requests), strict=True):
        assert_alike(one, other)
    ended = [said(outputs) for outputs in ours[1::4] if outputs[-1].finish == "stop"]
    assert len(ended) >= 3
    assert all(json.loads(text)["year"] >= 10 for text in ended)


@pytest.mark.parametrize("plan", SPLIT_PLANS, ids=lambda plan: plan.strategy)
async def test_streams_with_different_prompts(plan: Plan, engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(8)
    request = request_for(plan, rng, max_tokens=40, ignore_eos=False, grammar=of_schema(SCHEMA), trace_top=1)
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    assert ours[-1].finish == "stop"
    assert json.loads(said(ours))["town"] in ("Ay", "Bree")


async def test_an_ended_grammar_ends_the_answer_where_ends_are_ignored(
    engine: VllmEngine, embedded: TorchEngine
) -> None:
    request = request_for(PROXY, random.Random(9), max_tokens=6, ignore_eos=True, grammar=of_regex("no"))
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    assert [o.token for o in ours] == [*TOKENIZER.encode("no"), EOS]
    assert ours[-1].finish == "stop"


async def test_an_ended_grammar_ends_the_answer_before_its_minimum(engine: VllmEngine, embedded: TorchEngine) -> None:
    request = request_for(PROXY, random.Random(9), max_tokens=6, min_tokens=5, ignore_eos=False, grammar=of_regex("no"))
    ours = await answer(engine, request)
    assert_alike(ours, await answer(embedded, request))
    assert [(o.token, o.finish) for o in ours][-1] == (EOS, "stop")
    assert said(ours) == "no"


class Failing:
    """A grammar that cannot be followed, neither in the worker nor anywhere else."""

    text = "{"
    thought = None
    closing = None

    def start(self, ends: Sequence[int]) -> Failing:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        raise GrammarFailed("too many states")


async def test_a_grammar_that_fails_fails_its_request_alone(engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(11)
    bad = request_for(PROXY, rng, grammar=Failing())
    good = request_for(PROXY, rng, temperature=1.0, seed=1)
    expected = await answer(embedded, good)
    for chosen in (engine, embedded):
        failed, fine = await asyncio.gather(answer(chosen, bad), answer(chosen, good), return_exceptions=True)
        assert isinstance(failed, GrammarFailed)
        assert not isinstance(fine, BaseException)
        assert_alike(fine, expected)  # also its seeds


async def test_masks_that_exclude_each_other_fail_alone(engine: VllmEngine, embedded: TorchEngine) -> None:
    rng = random.Random(10)
    bad = request_for(PROXY, rng, grammar=of_regex("abc"), allowed_token_ids=tuple(TOKENIZER.encode("ax")))
    good = request_for(PROXY, rng, grammar=of_regex(PLATE), ignore_eos=False)
    for chosen in (engine, embedded):
        failed, fine = await asyncio.gather(answer(chosen, bad), answer(chosen, good), return_exceptions=True)
        assert isinstance(failed, NoTokenPossible)
        assert "position 1" in str(failed)
        assert not isinstance(fine, BaseException)
