"""The embedded engine on real checkpoints: what transformers computes, in float32 and in bfloat16.

Needs any of gemma3-270m, qwen-0.5b and qwen-1.5b.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, Member, ModelLoadError, load_member
from motet.engines.torch.model import ModelWork
from motet.kernels.reference import kl_divergence
from motet.models.checkpoint import read_tokenizer
from tests.engines.test_load_check import MUTATIONS
from tests.real.checkpoints import PROMPTS, folder_of, skip_without

NAMES = ("gemma3-270m", "qwen-0.5b", "qwen-1.5b")
DTYPES = (torch.float32, torch.bfloat16)
ANSWER_TOKENS = 12
TEXT = (
    "The lighthouse keeper climbed the 199 steps every evening, carrying a can of oil and the day's newspaper. In 1847 "
    "the lamp had been the brightest on the coast; ships steered by it from 20 miles away. def area(r): return r ** 2"
)
# our error to the float32 model over transformers' own: both are roundings of one kind, over some sixty tokens
KL_MARGIN = 1.25
NOISE_MARGIN = 1.5

pytestmark = pytest.mark.timeout(900)


@lru_cache
def tokenizer_of(name: str) -> Any:
    return read_tokenizer(str(folder_of(name)))


def loaded(name: str, dtype: torch.dtype) -> tuple[Member, Any]:
    tokenizer = tokenizer_of(name)
    sample = tokenizer(TEXT)["input_ids"]
    gc.collect()  # the last test's model, before this one's
    return load_member(name, str(folder_of(name)), dtype=dtype, vocab_size=len(tokenizer), sample=sample), tokenizer


@torch.inference_mode()
def plain(name: str, ids: list[int], dtype: torch.dtype, attention: str, width: int) -> Tensor:
    """(N, width) log-probs of transformers alone."""
    gc.collect()
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder_of(name)), dtype=dtype, attn_implementation=attention)
    return model(torch.tensor([ids]), use_cache=False).logits[0, :, :width].float().log_softmax(-1)


def through_slots(member: Member, ids: list[int]) -> Tensor:
    """(N, V) log-probs, the text in two chunks with single tokens between."""
    member.cache.resize(1, len(ids))
    cuts = [0, 20, 21, 22, len(ids)]
    with torch.inference_mode():
        steps = [member.forward([ModelWork(0, start, ids[start:end], end - start)]) for start, end in pairwise(cuts)]
    member.cache.clear()
    return torch.cat(steps).float().log_softmax(-1)


def greedy(member: Member, context: tuple[int, ...]) -> tuple[list[int], list[float]]:
    core = EngineCore({member.info.name: member})
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    core.add(core.group(GenerationRequest("r", single(member.info.name), (context,), sampling)))
    outputs = [output for result in iter(core.step, None) for _, output in result.outputs]
    return [output.token for output in outputs], [output.logprob for output in outputs]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_those_of_transformers(name: str) -> None:
    """In float32: the same tokens, with log-probs within 1e-3."""
    skip_without([name])
    member, tokenizer = loaded(name, torch.float32)
    contexts = [tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS[:2]]
    answers = [greedy(member, context) for context in contexts]
    width = member.vocab_size
    del member
    for context, (tokens, logprobs) in zip(contexts, answers, strict=True):
        expected = plain(name, [*context, *tokens], torch.float32, "eager", width)[len(context) - 1 : -1]
        assert expected.argmax(-1).tolist() == tokens
        torch.testing.assert_close(torch.tensor(logprobs), expected.amax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_as_near_as_transformers(name: str) -> None:
    """Log-probs within what lies between two of transformers' own attentions; not farther from the float32 model."""
    skip_without([name])
    member, tokenizer = loaded(name, torch.bfloat16)
    ids: list[int] = tokenizer(TEXT)["input_ids"]
    found, width = through_slots(member, ids), member.vocab_size
    del member
    eager, sdpa = (plain(name, ids, torch.bfloat16, kind, width) for kind in ("eager", "sdpa"))
    exact = plain(name, ids, torch.float32, "eager", width)
    said = torch.tensor(ids[1:])[:, None]
    off, noise = ((other - eager)[:-1].gather(-1, said).abs().mean() for other in (found, sdpa))
    ours = kl_divergence(exact, found).mean()
    theirs = max(kl_divergence(exact, other).mean() for other in (eager, sdpa))
    print(f"{name}: |Δ log-prob| {off:.4f} (noise {noise:.4f}); KL to float32 {ours:.5f} (transformers {theirs:.5f})")
    assert off <= NOISE_MARGIN * noise
    assert ours <= KL_MARGIN * theirs


REAL_MUTATIONS = [
    pytest.param(name, mutate, message, dtype, id=f"{what}-{name}-{str(dtype)[6:]}")
    for what, family, mutate, message in MUTATIONS
    for name in [{"gemma3": "gemma3-270m", "qwen2": "qwen-0.5b"}.get(family)]
    for dtype in DTYPES
    if name and (name == "gemma3-270m" or dtype == torch.bfloat16)
]


@pytest.mark.parametrize(("name", "mutate", "message", "dtype"), REAL_MUTATIONS)
def test_a_wrong_computation_is_refused(
    name: str,
    mutate: Callable[[pytest.MonkeyPatch], None],
    message: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without([name])
    mutate(monkeypatch)
    with pytest.raises(ModelLoadError, match=message):
        loaded(name, dtype)
