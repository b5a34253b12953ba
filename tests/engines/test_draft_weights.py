"""Guesses with a member's weights in fewer bits leave answers, slots and other requests as they are without."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from motet.composers.plan import single
from motet.engines.drafts import Speculation
from motet.engines.torch import EngineCore, EngineSettings, Member, ModelLoadError, draft_weights, load_member
from motet.engines.torch.draft_weights import TwofoldLinear, add_draft_weights
from motet.engines.torch.model import ModelWork
from motet.engines.torch.packing import ProjectionPart
from motet.engines.torch.quantization import QuantizationError, draft_bytes
from motet.models.facts import shapes_of
from tests.engines.test_exactness import request_for
from tests.engines.test_pace import Clock, leaning, ratios, seconds_of
from tests.engines.test_speculation import answered, assert_alike, engine_with


async def test_a_model_alone_guesses_for_itself(members: Mapping[str, Member], twofold: Mapping[str, Member]) -> None:
    """Without a name of a draft as well; one without such weights has nobody who would guess."""
    job = request_for(single("llama"), random.Random(1), max_tokens=40)
    (expected,) = await answered(engine_with(members, tokens=4), [job])
    engine = engine_with(twofold, tokens=4)
    (ours,) = await answered(engine, [job])
    assert_alike(ours, expected)
    assert engine.stats().accepted_tokens > 20, "weights in 8 and 4 bits mostly agree with the model's own"
    assert engine.stats().steps < 25


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2", "gemma"])
def test_a_members_own_forward_keeps_its_bits(
    members: Mapping[str, Member], twofold: Mapping[str, Member], name: str
) -> None:
    """And the other one differs from it, but not by much."""
    own, both = members[name], twofold[name]
    found: list[Tensor] = []
    for member, is_guess in ((own, False), (both, False), (both, True), (both, False)):
        member.cache.clear()
        member.cache.resize(1, 32)
        with torch.inference_mode():
            found.append(member.forward([ModelWork(0, 0, range(5, 25), 20)], is_guess=is_guess))
    plain, same, rough, again = found
    assert torch.equal(plain, same)
    assert torch.equal(plain, again)
    error = float((rough - plain).square().mean().sqrt() / plain.square().mean().sqrt())
    assert 1e-4 < error < 0.6
    assert both.draft_prices is not None
    assert own.draft_prices is None


def test_memory_is_what_the_weights_take(paths: Mapping[str, Path], twofold: Mapping[str, Member]) -> None:
    modules = list(twofold["llama"].model.modules())
    joint = {id(part.joint): part.joint.linear for part in modules if isinstance(part, ProjectionPart)}
    linears = [module for module in (*modules, *joint.values()) if isinstance(module, TwofoldLinear)]
    held = sum(
        tensor.numel() * tensor.itemsize
        for linear in linears
        for tensor in vars(linear.rough.stored).values()
        if isinstance(tensor, Tensor)
    )
    config = load_member("x", str(paths["llama"]), dtype=torch.float32).model.config
    assert held == draft_bytes(shapes_of(config), "int4", 4)


def test_what_has_no_such_form_is_refused() -> None:
    class Small(nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(12, 12)

    with pytest.raises(QuantizationError, match="draft_quantize: none of its weights can be stored in int4"):
        add_draft_weights(Small(), "int4")  # type: ignore[arg-type]


def test_a_load_error_names_the_model(paths: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(draft_weights, "store", nothing)
    with pytest.raises(ModelLoadError, match="model 'llama': draft_quantize: none"):
        load_member("llama", str(paths["llama"]), dtype=torch.float32, draft="int4")


def test_answers_become_faster(twofold: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a model alone."""
    rng = random.Random(0)
    clock = Clock(monkeypatch, twofold)
    rounds = [[request_for(plan, rng, max_tokens=80)] for _ in range(6) for plan in (leaning(0.9), single("llama"))]
    found = ratios(twofold, clock, rounds)
    assert max(found) <= 1.05
    assert statistics.mean(found[4:]) < 0.75


@pytest.mark.parametrize("tokens", [1, 3])
async def test_no_rough_forward_is_for_nothing(
    twofold: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Behind the last guess that is allowed there is nothing to guess, and the row is no term of the composition."""
    llama, calls = twofold["llama"], [0, 0]
    forward = llama.forward

    def counted(work: Sequence[ModelWork], *, is_guess: bool = False) -> Tensor:
        calls[is_guess] += 1
        return forward(work, is_guess=is_guess)

    monkeypatch.setattr(llama, "forward", counted)
    engine = engine_with(twofold, tokens=tokens)
    await answered(engine, [request_for(single("llama"), random.Random(3), max_tokens=30)])
    assert calls[True] <= engine.stats().draft_tokens


def test_a_text_that_repeats_nothing_is_guessed_by_its_model(
    twofold: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses of the text itself cost nothing, so that they look better than all others until one is seen."""
    rng = random.Random(0)
    clock = Clock(monkeypatch, twofold)
    core = EngineCore(twofold, EngineSettings(speculation=Speculation()))
    warm = request_for(single("llama"), rng, max_tokens=60)
    seconds_of(core, clock, [warm])
    before = core.stats().draft_tokens
    job = request_for(single("llama"), rng, max_tokens=80, temperature=0.2, seed=4)  # a record of its own
    seconds_of(core, clock, [job])
    assert core.stats().draft_tokens > before


async def test_a_rough_forward_that_fails_is_not_tried_again(
    members: Mapping[str, Member], paths: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = load_member("llama", str(paths["llama"]), dtype=torch.float32, draft="int4")
    forward, failed = own.forward, [0]

    def failing(work: Sequence[ModelWork], *, is_guess: bool = False) -> Tensor:
        if is_guess:
            failed[0] += 1
            raise RuntimeError("no")
        return forward(work)

    monkeypatch.setattr(own, "forward", failing)
    job = request_for(single("llama"), random.Random(1), max_tokens=20)
    (expected,) = await answered(engine_with(members), [job])
    (ours,) = await answered(engine_with({"llama": own}, tokens=4), [job])
    assert_alike(ours, expected)
    assert failed == [1]


async def test_answers_in_bfloat16_are_the_models_own(paths: Mapping[str, Path]) -> None:
    """Weights in 4 bits pass through other kernels there; the reported log-probs are those of a plain forward."""
    member = load_member("llama", str(paths["llama"]), dtype=torch.bfloat16, draft="int4")
    job = request_for(single("llama"), random.Random(5), max_tokens=30)
    engine = engine_with({"llama": member}, tokens=4)
    (outputs,) = await answered(engine, [job])
    assert engine.stats().accepted_tokens > 5
    said = [output.token for output in outputs]
    text = [*job.contexts[0], *said]
    member.cache.clear()
    member.cache.resize(1, 256)
    with torch.inference_mode():
        logits = member.forward([ModelWork(0, 0, text[:-1], len(said))])
    known = logits.float().log_softmax(-1)[range(len(said)), said]
    torch.testing.assert_close(torch.tensor([output.logprob for output in outputs]), known, atol=0.15, rtol=0)


def test_little_that_can_be_stored_is_told(paths: Mapping[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """GPT-2's layers are no linears."""
    load_member("gpt2", str(paths["gpt2"]), dtype=torch.float32, draft="int4")
    assert "of its weights alone can be stored in int4" in caplog.text
