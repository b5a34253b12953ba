"""The engine's parts that need no vLLM engine: what travels, the rows, the gate."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from motet.composers.plan import single
from motet.engines.base import EngineError, GenerationRequest, SamplingParams
from motet.engines.decoding import top_of, trace_of
from motet.engines.vllm.client import Client
from motet.engines.vllm.composition import IMPOSSIBLE, Composer, Matchers
from motet.engines.vllm.config import CompositeConfig
from motet.engines.vllm.internals import touch
from motet.engines.vllm.memory import Capacity, Gate
from motet.engines.vllm.model import MotetCompositeForCausalLM
from motet.engines.vllm.requests import Check, row_of, row_or_fault
from motet.engines.vllm.sampler import StepSampler, StepVerifier
from motet.engines.vllm.stages import Handover
from motet.engines.vllm.table import DrawnStep, Row, Table, Uniforms
from motet.engines.vllm.wire import (
    KEY,
    Link,
    Probe,
    Probed,
    RowSpec,
    payload_size,
    plain,
    read_payload,
    read_spec,
    write_payload,
)
from motet.kernels.decode import Decoded
from motet.kernels.eager import EagerKernels
from motet.kernels.reference import kl_divergence, shift_rank
from motet.models.info import ModelInfo
from motet.operator.loading_vllm import merged_checkpoint
from motet.operator.sources import Source
from tests.vllm.models import EOS, MAKERS, TOKENIZER, VOCAB
from tests.vllm.requests import PHASED, PLANS, SPLIT_PLANS, plan_of

SAMPLING = SamplingParams(max_tokens=3, bad_words=((1, 2), (3,)), logit_bias=((4, 0.5),), allowed_token_ids=(1, 2))


def numbers(values: torch.Tensor) -> list[float]:
    return cast("list[float]", values.tolist())


@pytest.mark.parametrize("plan", [*PLANS, *SPLIT_PLANS, PHASED], ids=lambda plan: plan.strategy)
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
        {"composition": "[" * 100_000},
        {"composition": '{"strategy":' * 900 + "1" + "}" * 900},
        {"composition": '{"strategy": "rules", "token_offsets": {"id:999": 1}}'},
        {"composition": 3},
        {"compositon": '{"strategy": "guidance", "scale": 2}'},
        {"composition": '{"strategy": "proxy_tuning", "expert": "nobody", "antiexpert": "llama"}'},
        {"composition": '{"strategy": "proxy_tuning", "expert": "llama", "antiexpert": "llama", "alpha": "big"}'},
        {"composition": '{"strategy": "guidance", "scale": 2}'},
        {"composition": '{"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c"}'},
        {"composition": '{"strategy": "layer_contrast"}'},
    ],
    ids=lambda bad: str(bad)[:80],
)
def test_malformed_rows_are_refused_in_the_front_end(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        row_of(bad, (), [], list(MAKERS), vocab_size=VOCAB)


def test_the_front_end_knows_how_wide_the_vocabulary_is() -> None:
    """An id beyond it would end the engine on a GPU."""
    CompositeConfig({"llama": {"path": "x"}}, vocab_size=VOCAB)
    params = SimpleNamespace(extra_args={"composition": '{"strategy": "rules", "token_offsets": {"id:99999": 1}}'})
    with pytest.raises(ValueError, match="99999"):
        Check.validate_params(params)


@pytest.mark.parametrize(("trace_top", "told"), [(None, False), (0, False), (2, False), (0, True), (2, True)])
def test_payloads_keep_their_numbers(trace_top: int | None, told: bool) -> None:
    torch.manual_seed(0)
    members = torch.randn(3, 200).log_softmax(-1)
    composed = (2 * members[0] - members[1]).log_softmax(-1)
    composed[7] = -math.inf
    probe = Probe(1, 4, trace_top, told, "entropy" if told else None)
    plan = plan_of("llama", {"strategy": "dynamic", "expert": "llama-b", "antiexpert": "llama-c"})
    values, ids = composed.topk(4)
    for token, alpha in ((5, math.nan), (7, 0.25)):
        drawn = torch.tensor([token])
        decoded = Decoded(
            drawn,
            composed[drawn],
            torch.tensor([[alpha]]),
            values[None],
            ids[None],
            kl_divergence(composed[None], members[:1]),
            shift_rank(members[:1], drawn),
        )
        voiced = composed[None] if told else None
        trace = None if trace_top is None else trace_of(plan, members, decoded, 0, trace_top, voiced)
        probed = Probed(float(composed[token]), top_of(decoded, 0, 4), trace, 0.75 if told else None)
        written = write_payload(probed, plan)
        assert len(written) == payload_size(probe, plan)
        assert min(written) > -math.inf, "a row's other tokens are -inf: the numbers are its largest"
        assert read_payload(lambda i, written=written: written[i], probe, plan) == probed
        assert trace is None or trace.alpha == (() if math.isnan(alpha) else (alpha,))


def test_draws_are_the_same_however_often_they_are_asked_for() -> None:
    uniforms = Uniforms("7/1")
    first = [uniforms[i] for i in range(20)]
    assert [uniforms[i] for i in (19, 3, 3, 0, 12)] == [first[i] for i in (19, 3, 3, 0, 12)]
    assert all(0 < value <= 1 for value in first)


class Rows(dict[int, Row]):
    """A batch for the composer."""

    def row(self, index: int) -> Row | None:
        return self.get(index)

    def rows(self) -> list[Row | None]:
        return [self.get(index) for index in range(max(self, default=-1) + 1)]


def composer_of(rows: dict[int, Row], members: dict[str, int]) -> tuple[Composer, Table]:
    table = Table(batch=Rows(rows))
    table.configure(members, (1,))
    return Composer(table, EagerKernels()), table


def taken(table: Table) -> DrawnStep:
    step = table.take_step()
    assert step is not None
    assert table.take_step() is None, "a step is taken once"
    return step


def test_one_row_that_fails_takes_no_other_with_it() -> None:
    good, bad = SamplingParams(1, 0.0), SamplingParams(1, 0.0, allowed_token_ids=(99,))
    rows = {i: Row(RowSpec(single("a"), draw=draw), [1], []) for i, draw in enumerate((good, bad, good))}
    composer, table = composer_of(rows, {"a": 0})
    logits = torch.zeros(3, 8)
    logits[:, 5] = 1.0
    composer([logits], [0, 1, 2], [0, 0, 0], [1, 1, 1])
    step = taken(table)
    assert step.tokens[[0, 2], 0].tolist() == [5, 5]
    assert step.logprobs[:, 0].isnan().tolist() == [False, True, False]


def test_a_row_that_nobody_has_checked_ends_at_once() -> None:
    fault = row_or_fault({"composition": "{"}, [1], [], ["a"], (1,))
    assert fault is not None
    composer, table = composer_of({1: fault}, {"a": 0})
    out = composer([torch.zeros(2, 8)], [0, 1], [0, 0], [1, 1])
    assert table.take_step() is None, "vLLM's sampler draws for both"
    assert out[0].exp().sum() == pytest.approx(1)
    assert torch.equal(out[1], torch.tensor([IMPOSSIBLE, 0.0, *[IMPOSSIBLE] * 6]))


def test_linked_rows_share_the_token() -> None:
    """Rows of a group in any order, the base's context last; a group that is not complete is left alone."""
    plan = SPLIT_PLANS[1]
    sampling = SamplingParams(4, 1.0, top_logprobs=3)
    specs = [RowSpec(plan, draw=sampling, key="1/0", link=Link("g", view, 2, (0, 1))) for view in (1, 0)]
    prompts = [[1, 2, 3], [1]]
    rows = {i: Row(spec, prompt, []) for i, (spec, prompt) in enumerate(zip(specs, prompts, strict=True))}
    composer, table = composer_of(rows, dict.fromkeys(MAKERS, 0))
    logits = torch.randn(2, 16)
    composer([logits], [0, 1], [2, 0], [3, 1])
    together = taken(table)
    assert torch.equal(together.tokens[0], together.tokens[1])
    scale = 1.7
    expected = (scale * logits[1].log_softmax(-1) + (1 - scale) * logits[0].log_softmax(-1)).log_softmax(-1)
    assert torch.allclose(together.logprobs[0], expected[together.tokens[0]], atol=1e-5)
    assert set(numbers(together.tokens[0, 1:])) == set(numbers(expected.topk(3).indices))
    composer([logits], [0, 1], [1, 0], [2, 1])
    apart = taken(table)
    assert not torch.allclose(apart.logprobs[1, 0], expected[apart.tokens[1, 0]], atol=1e-2)


def test_drafts_count_as_what_came_before() -> None:
    """Behind a draft stands what would be drawn had it been drawn: same uniform, same penalties, same bans."""
    sampling = SamplingParams(9, 1.0, frequency_penalty=1.5, bad_words=((4, 6),))
    spec = RowSpec(single("a"), drawn_from=2, draw=sampling, key="3/0")
    logits = torch.randn(3, 8) * 0.1
    drafts = [4, 5]
    composer, table = composer_of({0: Row(spec, [1, 2], [])}, {"a": 0})
    composer([logits], [0, 0, 0], [1, 2, 3], [2, *drafts])
    verified = taken(table)
    for count in range(3):
        composer, table = composer_of({0: Row(spec, [1, 2], drafts[:count])}, {"a": 0})
        composer([logits[count : count + 1]], [0], [1 + count], [[2, *drafts][count]])
        step = taken(table)
        assert torch.equal(step.tokens[0], verified.tokens[count])
        assert torch.allclose(step.logprobs[0], verified.logprobs[count], atol=1e-6)


class Theirs:
    """vLLM's sampler: token 7 everywhere, with two alternatives."""

    logprobs_mode = "raw_logits"

    def __call__(self, *parts: Any) -> Any:
        # the sampler gets the logits first, the rejection sampler third
        logits, count = (parts[0], 1) if len(parts) == 2 else (parts[2], 2)
        requests = logits.shape[0] // count
        ids = torch.tensor([[7, 6, 5]] * requests * count, dtype=torch.int32)
        ranks = torch.ones(requests * count, dtype=torch.int32)
        logprobs = touch("LogprobsTensors")(ids, torch.full(ids.shape, -0.5), ranks)
        return touch("SamplerOutput")(torch.full((requests, count), 7, dtype=torch.int32), logprobs)


def test_samplers_hand_over_what_was_drawn() -> None:
    """Requests that name no composition are drawn by vLLM, the others are not; a step is used once."""
    table = Table(
        step=DrawnStep(torch.tensor([[3, 2], [0, 0], [4, 1]]), torch.tensor([[-1.0, -2], [0, 0], [-3, -4]]), (1,))
    )
    sampler = StepSampler(Theirs(), table)
    logits = torch.zeros(3, 8)
    out = sampler(logits, None)
    assert out.sampled_token_ids.tolist() == [[3], [7], [4]]
    assert out.logprobs_tensors.logprob_token_ids.tolist() == [[3, 2, 0], [7, 6, 5], [4, 1, 0]]
    assert out.logprobs_tensors.logprobs[:, 0].tolist() == [-1.0, -0.5, -3.0]
    assert sampler(logits, None).sampled_token_ids.tolist() == [[7]] * 3
    assert sampler.logprobs_mode == "raw_logits"


def test_verifiers_hand_over_what_was_accepted() -> None:
    """Two requests with a draft each, the second one vLLM's own."""
    drawn = torch.tensor([[3, 2], [4, 1], [0, 0], [0, 0]])
    for draft, tokens in ((3, [3, 4]), (5, [3, -1])):
        table = Table(step=DrawnStep(drawn, -drawn.float(), (2, 3)))
        metadata = SimpleNamespace(num_draft_tokens=[1, 1], draft_token_ids=torch.tensor([draft, 5]), max_spec_len=1)
        out = StepVerifier(Theirs(), table)(metadata, None, torch.zeros(4, 8), None)
        assert out.sampled_token_ids.tolist() == [tokens, [7, 7]]
        assert out.logprobs_tensors.logprob_token_ids.tolist() == [[3, 2, 0], [4, 1, 0], [7, 6, 5], [7, 6, 5]]


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


@pytest.mark.parametrize("linked", [True, False])
async def test_an_unchecked_request_that_can_never_run_fails(infos: dict[str, ModelInfo], linked: bool) -> None:
    """Two contexts without the scheduler that links them, or longer together than the cache."""
    request = GenerationRequest("r", SPLIT_PLANS[1], ((1, 2, 3), (1,)), SamplingParams(max_tokens=40))
    client = Client(None, infos, Capacity(100, tokens=64, bytes_per_token=8, rows=4), linked=linked)
    with pytest.raises(EngineError, match="can never run"):
        await anext(client.draw(request, 0))


def test_facts_are_those_of_the_loaded_models(infos: dict[str, ModelInfo], paths: dict[str, Path]) -> None:
    from dataclasses import replace

    from motet.engines.torch import load_member

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


def test_matchers_read_the_tokenizer_that_a_member_names(tmp_path: Path) -> None:
    """Of a merged adapter it does not lie beside the weights. A row keeps its matcher."""
    TOKENIZER.hf.save_pretrained(str(tmp_path))
    matchers = Matchers({"a": {"path": "nowhere", "tokenizer": [str(tmp_path), None]}}, VOCAB)
    row = Row(RowSpec(single("a"), (EOS or 0,), grammar="start: /ab/"), (), [])
    matcher = matchers.of(row)
    assert matcher is not None
    assert matchers.of(row) is matcher
    first, second = TOKENIZER.encode("ab")
    for generated, following in (([], first), ([first], second), ([first, second], EOS), ([], first)):
        assert int.from_bytes(matcher.allowed(generated), "little") == 1 << (following or 0)
    assert matchers.of(Row(RowSpec(single("a")), (), [])) is None


def skipping(rows: dict[int, Row]) -> Table:
    table = Table(batch=Rows(rows))
    table.configure({"gemma": 0, "llama": 1, "qwen": 1, "mistral": 2}, (1,), skips=True)
    return table


def test_a_step_runs_the_members_that_its_rows_read() -> None:
    contrastive = plan_of("gemma", {"strategy": "contrastive", "amateur": "mistral"})
    assert skipping({}).running() == [0, 1, 2], "a warm-up has no rows"
    assert skipping({0: Row(RowSpec(single("qwen")), [1], [])}).running() == [1]
    assert skipping({0: Row(RowSpec(contrastive), [1], [])}).running() == [0, 2]
    assert skipping({1: Row(RowSpec(single("mistral")), [1], [])}).running() == [0, 2], "who names none reads the first"
    assert skipping({0: Row(RowSpec(single("")), [1], [])}).running(), "who names nobody ends, after a step"
    everything = skipping({0: Row(RowSpec(single("qwen")), [1], [])})
    everything.skips = False
    assert everything.running() == [0, 1, 2]


class CountingMember(nn.Module):
    """Hidden states that are all `value`; logits are hidden states."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.forwards = 0

    def forward(self, input_ids: torch.Tensor, *_: object) -> torch.Tensor:
        self.forwards += 1
        return torch.full((len(input_ids), 8), self.value)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        assert bool((hidden == self.value).all()), "only of its own hidden states"
        return hidden


def test_the_composite_runs_no_other_member() -> None:
    composite = MotetCompositeForCausalLM.__new__(MotetCompositeForCausalLM)
    nn.Module.__init__(composite)
    members = [CountingMember(float(number + 1)) for number in range(3)]
    table = skipping({0: Row(RowSpec(single("mistral"), draw=SamplingParams(1, 0.0)), [1], [])})
    composer = Composer(table, EagerKernels())
    vars(composite).update(_dtype=torch.float32, _columns=3, _widths=[8, 8, 8], _table=table, _vocab_size=8)
    composite.members = nn.ModuleDict({f"m{number}": member for number, member in enumerate(members)})
    handover = Handover(dict(composite.members.items()), torch.float32)
    vars(composite).update(_handover=handover, _composer=composer)
    places = torch.zeros(1, dtype=torch.int64)
    composite.compute_logits(composite(places, places, rows=places.to(torch.int32)))
    assert [member.forwards for member in members] == [0, 0, 1]
    assert taken(table).logprobs[0, 0] == pytest.approx(-math.log(8))
