"""The engine's parts that need no vLLM engine: what travels, the rows, the gate, the options."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from motet.composers.plan import single
from motet.kernels.dispatch import EagerKernels
from motet.server.engines.base import ModelInfo, SamplingParams
from motet.server.engines.vllm.carrier import draw
from motet.server.engines.vllm.composition import IMPOSSIBLE, Composer
from motet.server.engines.vllm.gate import Gate
from motet.server.engines.vllm.loading import EngineArgsError, check_engine_args
from motet.server.engines.vllm.payload import payload_row, payload_size, read_payload
from motet.server.engines.vllm.requests import row_of
from motet.server.engines.vllm.table import Row, Table, Uniforms
from motet.server.engines.vllm.wire import KEY, Link, Probe, RowSpec, plain, read_spec
from motet.server.loading_vllm import merged_checkpoint
from motet.server.sources import Source
from tests.vllm.models import MAKERS
from tests.vllm.requests import PLANS, SPLIT_PLANS, plan_of

SAMPLING = SamplingParams(max_tokens=3, bad_words=((1, 2), (3,)), logit_bias=((4, 0.5),), allowed_token_ids=(1, 2))


def numbers(values: torch.Tensor) -> list[float]:
    return cast("list[float]", values.tolist())


@pytest.mark.parametrize("plan", [*PLANS, *SPLIT_PLANS], ids=lambda plan: plan.strategy)
def test_rows_travel_as_json(plan: object) -> None:
    spec = RowSpec(plan, (2,), 3, 4, SAMPLING, "7/0", Probe(1, 2, 3), Link("g", 0, 2, (0, 1)), (5,))  # type: ignore[arg-type]
    assert read_spec(json.loads(json.dumps(plain(spec)))) == spec


@pytest.mark.parametrize(
    "bad",
    [
        {KEY: 5},
        {KEY: {"type": "Nothing"}},
        {KEY: {"type": "Link"}},
        {KEY: plain(single("llama"))},
        {KEY: plain(RowSpec(single("lama")))},
        {"composition": "{"},
        {"composition": 3},
        {"composition": '{"strategy": "proxy_tuning", "expert": "nobody", "antiexpert": "llama"}'},
        {"composition": '{"strategy": "proxy_tuning", "expert": "llama", "antiexpert": "llama", "alpha": "big"}'},
        {"composition": '{"strategy": "guidance", "scale": 2}'},
        {"composition": '{"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c"}'},
    ],
    ids=str,
)
def test_malformed_rows_are_refused_in_the_front_end(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        row_of(bad, (), [], list(MAKERS))


def test_payloads_keep_their_numbers() -> None:
    torch.manual_seed(0)
    members = torch.randn(3, 200).log_softmax(-1)
    composed = (2 * members[0] - members[1]).log_softmax(-1)
    composed[7] = -math.inf
    probe = Probe(1, 4, 2)
    plan = plan_of("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"})
    for token, alpha in ((5, math.nan), (7, 0.25)):
        row = payload_row(members, composed, [alpha, math.nan], token, probe, plan)
        size = payload_size(probe, plan)
        assert set(numbers(row.topk(size).indices)) == set(range(size)), "the numbers are the largest of the row"
        probed = read_payload(lambda i, row=row: float(row[i]), probe, plan)
        assert probed.logprob == float(composed[token])
        assert probed.trace.member_logprobs == tuple(numbers(members[:, token]))
        assert probed.trace.alpha == (() if math.isnan(alpha) else (alpha,))
        assert [t for t, _ in probed.top] == numbers(composed.topk(4).indices)


def test_draws_are_the_same_however_often_they_are_asked_for() -> None:
    uniforms = Uniforms("7/1")
    first = [uniforms[i] for i in range(20)]
    assert [uniforms[i] for i in (19, 3, 3, 0, 12)] == [first[i] for i in (19, 3, 3, 0, 12)]
    assert all(0 < value <= 1 for value in first)


def test_one_row_that_fails_takes_no_other_with_it() -> None:
    table = Table()
    table.configure({"a": 0}, ())
    table.rows = {1: Row(RowSpec(single("nobody")), [1], [])}
    composer = Composer(table, EagerKernels())
    with pytest.raises(KeyError):
        composer([torch.zeros(2, 8)], [0, 1], [0, 0])
    table.rows = {1: Row(RowSpec(single("a"), draw=SamplingParams(1, allowed_token_ids=(99,))), [1], [])}
    out = composer([torch.zeros(2, 8)], [0, 1], [0, 0])
    assert out[0].exp().sum() == pytest.approx(1)
    assert out[1].isnan().all()


def test_linked_rows_share_the_distribution_and_the_token() -> None:
    """Rows of a group in any order, the base's context last; a group that is not complete is left alone."""
    plan = SPLIT_PLANS[1]
    table = Table()
    table.configure(dict.fromkeys(MAKERS, 0), ())
    specs = [RowSpec(plan, draw=SamplingParams(4, 1.0), key="1/0", link=Link("g", view, 2, (0, 1))) for view in (1, 0)]
    prompts = [[1, 2, 3], [1]]
    table.rows = {i: Row(spec, prompt, []) for i, (spec, prompt) in enumerate(zip(specs, prompts, strict=True))}
    logits = torch.randn(2, 16)
    composer = Composer(table, EagerKernels())
    together = composer([logits], [0, 1], [2, 0])
    assert torch.equal(together[0], together[1])
    scale = 1.7
    expected = (scale * logits[1].log_softmax(-1) + (1 - scale) * logits[0].log_softmax(-1)).log_softmax(-1)
    assert torch.allclose(together[0], expected, atol=1e-5)
    apart = composer([logits], [0, 1], [1, 0])
    assert not torch.allclose(apart[0], expected, atol=1e-2)
    drawn = draw(EagerKernels(), together, list(table.rows.items()))
    assert drawn[0] == drawn[1]


def test_impossible_tokens_are_finite() -> None:
    table = Table()
    table.configure({"a": 0}, ())
    table.rows = {0: Row(RowSpec(single("a"), draw=SamplingParams(1, allowed_token_ids=(3,))), [1], [])}
    out = Composer(table, EagerKernels())([torch.zeros(1, 8)], [0], [0])
    assert torch.equal(out[0], torch.tensor([IMPOSSIBLE] * 3 + [0.0] + [IMPOSSIBLE] * 4))


async def test_the_gate_lets_in_by_turns() -> None:
    gate = Gate(10, 4)
    assert gate.fits(10, 4)
    assert not gate.fits(11, 2)
    order: list[str] = []
    go = asyncio.Event()

    async def enter(name: str, tokens: int) -> None:
        async with gate.room(tokens, 2):
            order.append(name)
            await go.wait()

    tasks = [asyncio.create_task(enter(name, tokens)) for name, tokens in (("a", 6), ("b", 6), ("c", 2), ("d", 1))]
    await asyncio.sleep(0.01)
    assert order == ["a"], "the small ones do not overtake"
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert order == ["a", "c"], "the batch holds two of them"
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c", "d"]
    async with asyncio.timeout(1), gate.room(10, 4):
        pass


def test_options_that_cannot_be_taken_are_named_all_at_once() -> None:
    check_engine_args({"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "enforce_eager": True})
    with pytest.raises(EngineArgsError) as refusal:
        check_engine_args({"model": "x", "tensor_paralel_size": 2, "enable_lora": True})
    text = "\n".join(refusal.value.problems)
    assert "the models of the file" in text
    assert "Did you mean tensor_parallel_size?" in text
    assert "adapters of experts are merged" in text


def test_facts_are_those_of_the_loaded_models(infos: dict[str, ModelInfo], paths: dict[str, Path]) -> None:
    from dataclasses import replace

    from motet.server.engines.torch import load_member

    for name, info in infos.items():
        loaded = load_member(name, str(paths[name]), dtype=torch.float32, vocab_size=info.vocab_size).info
        assert replace(info, device="cpu") == loaded


def test_adapters_are_merged_once(paths: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(paths["llama"])
    adapted = cast(Any, get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    expected = adapted(ids).logits
    source = Source(str(tmp_path / "adapter"), base=str(paths["llama"]))
    folder = merged_checkpoint(source, tmp_path / "cache")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    written = (folder / "config.json").stat().st_mtime_ns
    assert merged_checkpoint(source, tmp_path / "cache") == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
