"""A batch's logits are each document's own, whatever shares its row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from motet.training.llama import make_llama, runs_fast
from motet.training.objectives.logprobs import by_row
from motet.training.policies.frozen import AdaptersOff, Frozen, frozen_model, reference_of
from motet.training.policies.model import ModelPolicy, PackingError, is_packed
from tests.tiny import SHAPE, VOCAB, gemma, gpt2, llama, mistral, qwen
from tests.training.batches import Document, make_batch
from tests.training.tables import blocks_of

DOCUMENTS = [
    Document(list(range(5, 25)), 4),  # longer than the sliding window of 9
    Document([30, 31], 1),
    Document(list(range(40, 53)), 10),
    Document(list(range(100, 112)), 1),
]
PADDED = make_batch([[document] for document in DOCUMENTS])
PACKED = make_batch([DOCUMENTS[:2], DOCUMENTS[2:]])


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=12))


def cohere() -> PreTrainedModel:
    """Logits are scaled behind the head."""
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25))


def plain() -> PreTrainedModel:
    return make_llama(VOCAB, hidden=32, layers=2, heads=4, intermediate=48, max_length=64, seed=0)


def lora() -> nn.Module:
    return adapted(llama())


def adapted(model: PreTrainedModel, dropout: float = 0.0) -> nn.Module:
    """LoRA on all linear layers, its second factor not zero."""
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return tuned


MAKERS: list[Callable[[], nn.Module]] = [llama, qwen, qwen3, mistral, gemma, gpt2, plain, lora]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def alone(model: nn.Module) -> Tensor:
    """The module's own logits of each document by itself, at its targets: (N, V)."""
    rows: list[Tensor] = []
    for document in DOCUMENTS:
        logits: Tensor = model(input_ids=torch.tensor([list(document.ids)]), use_cache=False).logits[0]
        rows.append(logits[document.start - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_padded_and_packed_rows_equal_each_document_alone(make: Callable[[], nn.Module]) -> None:
    model = build(make)
    expected = alone(model)
    policy = ModelPolicy(model, torch.float64)
    for batch in (PADDED, PACKED):
        logits = policy(batch)
        assert logits.dtype == torch.float64
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)  # norms and rotations work in float32


@pytest.mark.parametrize("make", [llama, plain, lora], ids=lambda make: make.__name__)
def test_gradients_of_packed_rows_equal_those_of_documents_alone(make: Callable[[], nn.Module]) -> None:
    model = build(make)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    probe = torch.randn(len(PACKED.targets), VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((alone(model) * probe).sum(), trained)
    actual = torch.autograd.grad((ModelPolicy(model, torch.float64)(PACKED) * probe).sum(), trained)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("make", [*MAKERS, cohere], ids=lambda make: make.__name__)
def test_scores_in_blocks_are_the_models_own(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps and scales behind the head included; no block holds more rows than it may."""
    model = build(make)
    policy, seen = ModelPolicy(model, torch.float64), list[int]()

    def values(rows: slice, logits: Tensor) -> Tensor:
        seen.append(len(logits))
        return logits.gather(-1, PACKED.targets[rows, None])[:, 0]

    monkeypatch.setattr("motet.training.objectives.logprobs.block_rows", blocks_of(5))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = alone(model).gather(-1, PACKED.targets[:, None])[:, 0]
    got = by_row(values, policy.scores(PACKED))
    assert max(seen) == 5
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    probe = torch.randn(len(got), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * probe).sum(), trained)
    for one, other in zip(torch.autograd.grad((got * probe).sum(), trained), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * max(1.0, other.abs().max().item()))


def test_a_head_that_cannot_be_computed_apart_is_computed_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(llama)
    monkeypatch.setattr(model, "base_model_prefix", "elsewhere")
    policy = ModelPolicy(model, torch.float64)
    torch.testing.assert_close(policy.scores(PACKED).whole(), policy(PACKED))


def test_rows_are_read_end_to_end_without_padding() -> None:
    model: Any = build(qwen)
    seen: list[int] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].shape[1])

    model.model.layers[0].register_forward_pre_hook(note)
    policy = ModelPolicy(model, torch.float64)
    policy(PADDED)
    assert seen[-1] == PADDED.num_tokens < PADDED.input_ids.numel()


def test_the_plain_llama_takes_the_fast_forward_and_others_do_not() -> None:
    assert runs_fast(plain())
    assert not any(runs_fast(build(make)) for make in (llama, lora, qwen, gpt2))
    wrapped: Any = adapted(plain())
    assert not runs_fast(wrapped.get_base_model())


@pytest.mark.parametrize("make", [plain, llama], ids=lambda make: make.__name__)
def test_hidden_states_are_what_the_head_reads(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    hidden, logits = ModelPolicy(model, torch.float32).hidden(PACKED)
    assert hidden.shape == (len(PACKED.targets), model.config.hidden_size)
    whole: Any = model
    torch.testing.assert_close(whole.lm_head(hidden), logits)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_no_token_sees_another_document(lengths: list[int], random: object) -> None:
    """Other documents' tokens change nothing in this one's logits."""
    documents = [Document([(7 * k + t) % VOCAB for t in range(length + 1)]) for k, length in enumerate(lengths)]
    batch = make_batch([documents])
    changed = batch.input_ids.where(batch.documents == 0, (batch.input_ids + 11) % VOCAB)
    policy = ModelPolicy(PLAIN, torch.float32)
    own = batch.owners == 0
    torch.testing.assert_close(policy(batch)[own], policy(replace(batch, input_ids=changed))[own])


PLAIN = plain()


def test_bfloat16_is_autocast_and_comes_back_as_float32() -> None:
    for make in (plain, llama):
        model = make()
        policy = ModelPolicy(model, torch.bfloat16)
        logits = policy(PACKED)
        assert logits.dtype == torch.float32
        exact = ModelPolicy(model, torch.float32)(PACKED)
        torch.testing.assert_close(logits, exact, rtol=0, atol=0.1 * exact.std().item() + 0.02)
        assert not torch.equal(logits, exact)


def test_long_rows_take_the_models_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ModelPolicy(plain(), torch.float32)
    fast = policy(PACKED)
    monkeypatch.setattr("motet.training.policies.model.FAST_LENGTH", PACKED.input_ids.shape[1] - 1)
    monkeypatch.delattr("motet.training.llama.hidden_states")
    torch.testing.assert_close(policy(PACKED), fast, rtol=0, atol=1e-5)


def test_packing_is_refused_where_it_leaks() -> None:
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, lru_width=32
    )
    policy = ModelPolicy(RecurrentGemmaForCausalLM(config), torch.float32)
    assert policy(PADDED).shape == (len(PADDED.targets), VOCAB)
    with pytest.raises(PackingError, match=r"RecurrentGemmaForCausalLM.*packing=none"):
        policy(PACKED)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(TypeError, match="no output head"):
        ModelPolicy(nn.Linear(2, 2), torch.float32)


def test_what_is_packed() -> None:
    assert is_packed(PACKED)
    assert not is_packed(PADDED)


def test_the_reference_of_adapters_is_the_untuned_model_and_gradients_survive_it() -> None:
    torch.manual_seed(0)
    base = llama().double()
    untuned = copy.deepcopy(base)
    model = adapted(base, dropout=0.5).double().train()
    policy = ModelPolicy(model, torch.float64)
    reference = reference_of(policy)
    assert isinstance(reference, AdaptersOff)
    trained = policy(PACKED)
    torch.testing.assert_close(reference(PACKED), ModelPolicy(untuned, torch.float64)(PACKED), rtol=0, atol=1e-9)
    assert not reference(PACKED).requires_grad
    assert model.training
    assert not torch.allclose(trained, reference(PACKED))
    trained.sum().backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora" in name]
    assert gradients
    assert all(gradient is not None for gradient in gradients)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora" in name)


def test_the_reference_of_full_tuning_is_a_copy() -> None:
    model = plain()
    policy = ModelPolicy(model, torch.float32)
    reference = reference_of(policy)
    before = policy(PADDED).detach()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert isinstance(reference, Frozen)
    torch.testing.assert_close(reference(PADDED), before)
    assert not torch.allclose(policy(PADDED), before)
    assert not reference(PADDED).requires_grad


def test_a_frozen_model_has_no_trainable_parameter() -> None:
    model = plain().train()
    policy = frozen_model(model, torch.float32)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not policy(PADDED).requires_grad
