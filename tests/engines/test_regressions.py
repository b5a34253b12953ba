"""Defects that were found once; each test says which."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Exaone4Config,
    Exaone4ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from motet.composers.plan import Plan, RuleVector, Stream, single
from motet.engines.base import EngineError, GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, EngineSettings, Member, ModelLoadError, TorchEngine, load_member
from tests.engines.conftest import PlainLoop
from tests.engines.test_engine import CONTEXT, collect, request, run, tokens
from tests.tiny import SHAPE, VOCAB


def nothing(ids: torch.Tensor) -> torch.Tensor:
    return torch.full((*ids.shape, 48), float("nan"))


async def drained(generation: Any) -> int:
    return len([output async for output in generation])


async def test_requests_that_arrive_while_the_engine_closes_are_told(members: Mapping[str, Member]) -> None:
    """They waited for ever: accepted, but never seen by the thread that had ended."""
    engine = TorchEngine(members)
    generations: list[Any] = []
    closing = asyncio.create_task(engine.close())
    try:
        while True:
            generations.append(engine.generate(request(max_tokens=100)))
            await asyncio.sleep(0)
    except EngineError:
        pass
    await closing
    for generation in generations:
        with pytest.raises(EngineError):
            await asyncio.wait_for(drained(generation), 5)


async def test_what_a_broken_forward_wrote_poisons_nobody(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN keys stayed in the freed slot: −inf + NaN is NaN for whoever came next, and for the same prompt for ever."""
    engine = TorchEngine(members)
    member = members["llama"]
    embedding: Any = member.model.get_input_embeddings()
    long = request(single("llama"), tuple(range(3, 80)))
    short = request(single("llama"), (4, 5, 6))
    doomed = request(single("llama"), tuple(range(7, 100)))
    expected = await tokens(engine, long), await tokens(engine, short)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "forward", nothing)
        with pytest.raises(EngineError, match="not a number"):
            await tokens(engine, doomed)
    assert len((await tokens(engine, doomed))[0]) == 8, "a kept prefix of NaN fails for ever"
    assert await asyncio.gather(tokens(engine, long), tokens(engine, short)) == list(expected)
    await engine.close()


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_layers_without_a_window_keep_none(tmp_path: Path) -> None:
    """Exaone4 passes None on its global layers while the module still names a window."""
    shape: Any = {**SHAPE, "num_hidden_layers": 4, "sliding_window": 24, "sliding_window_pattern": 2}
    config = Exaone4Config(**shape)
    torch.manual_seed(0)
    model = Exaone4ForCausalLM(config).eval()
    member = load_member("exaone", save(model, tmp_path), dtype=torch.float32)
    ids = tuple(int(i) for i in torch.randint(3, VOCAB, (90,), generator=torch.Generator().manual_seed(1)))
    job = GenerationRequest("r", single("exaone"), (ids[:1],), SamplingParams(max_tokens=0), forced=ids[1:])
    core = EngineCore({"exaone": member})
    core.add(core.group(job))
    seen: list[float] = []
    while result := core.step():
        seen += [output.logprob for _, output in result.outputs]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor(seen), expected, atol=1e-4, rtol=0)


def test_attention_in_chunks_is_refused_whatever_their_size(tmp_path: Path) -> None:
    """A chunk longer than the self-check's tokens went unnoticed, and answers were wrong beyond it."""
    shape: Any = {**SHAPE, "intermediate_size_mlp": 96, "head_dim": 12, "attention_chunk_size": 64}
    experts: Any = {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = Llama4ForCausalLM(Llama4TextConfig(**shape, **experts))
    with pytest.raises(ModelLoadError, match="layer 0: attention: its answers differ"):
        load_member("llama4", save(model, tmp_path), dtype=torch.float32)


def test_factors_of_long_contexts_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """longrope chooses its factors by the longest position in the batch: its context is capped where they change."""
    rope: Any = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": 64,
    }
    model = Phi3ForCausalLM(Phi3Config(**SHAPE, original_max_position_embeddings=64, rope_parameters=rope))
    assert load_member("phi", save(model, tmp_path), dtype=torch.float32).info.max_model_len == 64


async def test_an_end_outside_the_vocabulary_hurts_nobody(
    paths: Mapping[str, Path], members: Mapping[str, Member]
) -> None:
    """An index error in one request's masks failed every request of the step."""
    narrow = load_member("narrow", str(paths["qwen"]), dtype=torch.float32, vocab_size=2)
    assert narrow.info.eos_token_ids == ()


async def test_only_the_guilty_choice_of_a_failed_composition_is_lost(engine: TorchEngine) -> None:
    beyond = request(single("llama"), logit_bias=((VOCAB + 5, 1.0),))  # the server refuses it; the engine must survive
    healthy = [request(single("llama"), tuple(range(5, 9 + i))) for i in range(4)]
    results = await asyncio.gather(
        collect(engine, beyond), *(collect(engine, job) for job in healthy), return_exceptions=True
    )
    assert isinstance(results[0], EngineError)
    assert not any(isinstance(result, BaseException) for result in results[1:])


async def test_an_arena_that_cannot_be_allocated_fails_its_requests_alone(
    engine: TorchEngine, members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It killed the engine, and everything that ran."""
    healthy = engine.generate(request(single("qwen"), max_tokens=100))
    await healthy.__anext__()

    def explode(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(members["llama"].cache, "add", explode)
        with pytest.raises(EngineError, match="no memory"):
            await collect(engine, request(single("llama")))
    assert len([output async for output in healthy]) == 99
    assert len((await collect(engine, request(single("llama"))))[0]) == 8


async def test_running_choices_keep_their_slots_where_there_is_no_memory_for_another(
    engine: TorchEngine, members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed allocation lost the slots of all that ran on the model."""
    running = engine.generate(request(single("llama"), max_tokens=150))
    await running.__anext__()

    def explode(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(members["llama"].cache, "add", explode)
        with pytest.raises(EngineError, match="no memory"):
            await collect(engine, request(single("llama"), tuple(range(3, 120)) * 2 + CONTEXT, max_tokens=9))
        assert len([output async for output in running]) == 149
    assert len((await collect(engine, request(single("llama"))))[0]) == 8
    assert engine.stats().running == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_with_or_without_its_instructions(paths: Mapping[str, Path], dtype: torch.dtype) -> None:
    """Packing float16 weights raised on processors without the instructions for it."""
    member = load_member("half", str(paths["llama"]), dtype=dtype)
    assert len(run(EngineCore({"half": member}), request(single("half")))) == 8


async def test_an_expert_ends_answers_in_its_own_way(members: Mapping[str, Member]) -> None:
    """Only the base's end of sequence was known: base = anti-expert, α = 1 did not stop where the expert does."""
    plan = Plan((Stream("base", "llama"), Stream("expert", "qwen", 1.0), Stream("antiexpert", "llama-b", -1.0)))
    core = EngineCore(members)
    job = request(plan, ignore_eos=False)
    object.__setattr__(members["qwen"].info, "eos_token_ids", (7,))
    object.__setattr__(members["llama-b"].info, "eos_token_ids", (9,))
    try:
        choice = core.group(job).choices[0]
        assert choice.eos_token_ids == (2, 7)
    finally:
        for name in ("qwen", "llama-b"):
            object.__setattr__(members[name].info, "eos_token_ids", (2,))


async def test_a_scored_prompt_is_not_counted_as_written(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    """Asking for the prompt's log-probs changed the answer under rules."""
    plan = Plan((Stream("base", "llama"),), rules=RuleVector(eos_ramp_tokens=4, eos_ramp_weight=6.0, repetition=2.0))
    params = SamplingParams(max_tokens=10, temperature=0.0)
    read = GenerationRequest("a", plan, (CONTEXT,), params)
    scored = GenerationRequest(
        "b", plan, (CONTEXT[:1],), params, forced=CONTEXT[1:], num_prompt_forced=len(CONTEXT) - 1
    )
    answer = [output.token async for output in engine.generate(read)]
    echoed = [output.token async for output in engine.generate(scored) if not output.forced]
    assert echoed == answer


def test_a_chunk_smaller_than_the_streams_still_moves(members: Mapping[str, Member]) -> None:
    """With two streams over one model and a chunk of one token, the share of each was zero."""
    core = EngineCore(members, EngineSettings(prefill_chunk=1))
    core.add(core.group(request(single("llama"), max_tokens=150)))
    core.step()
    twice = Plan((Stream("base", "llama", 1.5), Stream("without", "llama", -0.5)))
    group = core.group(request(twice, (5, 6, 7, 8), max_tokens=2))
    core.add(group)
    for _ in range(20):
        core.step()
    assert group.finished


def test_a_sibling_that_waits_for_a_prompt_lets_others_pass(members: Mapping[str, Member]) -> None:
    core = EngineCore(members, EngineSettings(idle_prefill_chunk=4, prefill_chunk=4))
    core.add(core.group(request(single("llama"), tuple(range(3, 100)), n=3)))
    other = core.group(request(single("qwen"), (5, 6)))
    core.add(other)
    core.step()
    assert core.scheduler.running[-1] is other.choices[0]
