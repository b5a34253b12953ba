"""A soft prompt in training: every document, padded or packed, is transformers over the prompt's embeddings and its
own; what is trained is the prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.training.batch import Batch
from motet.training.policies.frozen import AdaptersOff, reference_of
from motet.training.policies.model import ModelPolicy
from motet.training.policies.soft_prompt import SoftPromptModel, with_prefix
from tests.training.policies.test_model import DOCUMENTS, PACKED, PADDED, VOCAB, gemma, gpt2, llama, mistral

TOKENS = 3


def build(make: Callable[[], nn.Module]) -> SoftPromptModel:
    torch.manual_seed(0)
    model = cast("PreTrainedModel", make()).double().eval()
    rows = torch.randn(TOKENS, model.get_input_embeddings()(torch.tensor([0])).shape[-1])
    return SoftPromptModel(model, rows * 0.5, "base").double().eval()


def alone(prompt: SoftPromptModel) -> Tensor:
    """Transformers' logits of each document by itself behind the embeddings, at its targets: (N, V)."""
    found: list[Tensor] = []
    for document in DOCUMENTS:
        embedded = prompt.model.get_input_embeddings()(torch.tensor([list(document.ids)]))
        whole = torch.cat([prompt.embeddings[None], embedded], 1)
        logits: Tensor = prompt.model(inputs_embeds=whole, use_cache=False).logits[0, TOKENS:]
        found.append(logits[document.start - 1 : -1])
    return torch.cat(found)


@pytest.mark.parametrize("make", [llama, mistral, gemma, gpt2], ids=lambda make: make.__name__)
def test_padded_and_packed_rows_are_documents_behind_the_embeddings(make: Callable[[], nn.Module]) -> None:
    prompt = build(make)
    expected, policy = alone(prompt), ModelPolicy(prompt, torch.float64)
    for batch in (PADDED, PACKED):
        torch.testing.assert_close(policy(batch), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(policy.scores(batch).whole(), expected, rtol=0, atol=1e-5)


def test_gradients_reach_the_embeddings_alone() -> None:
    prompt = build(llama)
    assert [name for name, parameter in prompt.named_parameters() if parameter.requires_grad] == ["embeddings"]
    probe = torch.randn(len(PACKED.targets), VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((alone(prompt) * probe).sum(), [prompt.embeddings])
    (got,) = torch.autograd.grad((ModelPolicy(prompt, torch.float64)(PACKED) * probe).sum(), [prompt.embeddings])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_before_training_there_is_no_prompt() -> None:
    prompt = build(llama)
    policy = ModelPolicy(prompt, torch.float64)
    reference = reference_of(policy)
    assert isinstance(reference, AdaptersOff)
    plain = ModelPolicy(prompt.model, torch.float64)
    torch.testing.assert_close(reference.scores(PADDED).whole(), plain(PADDED))
    assert not torch.allclose(policy(PADDED), plain(PADDED), atol=0.1)


def document_of(batch: Batch, number: int) -> list[list[Any]]:
    """Its ids, their positions, and whether they count."""
    parts = (batch.input_ids, batch.positions, batch.counted)
    return [cast("list[Any]", tensor[batch.documents == number].tolist()) for tensor in parts]


@pytest.mark.parametrize("batch", [PADDED, PACKED], ids=["padded", "packed"])
def test_prefixed_batches_hold_the_same_documents(batch: Batch) -> None:
    longer = with_prefix(batch, TOKENS)
    assert longer.targets is batch.targets
    for number in range(batch.num_documents):
        before, after = (document_of(one, number) for one in (batch, longer))
        assert after[0] == [-1, -2, -3, *before[0]]
        assert after[1] == list(range(TOKENS + len(before[0])))
        assert after[2] == [False] * TOKENS + before[2]
    assert longer.num_tokens == batch.num_tokens + TOKENS * batch.num_documents


def test_answers_are_those_behind_the_embeddings() -> None:
    """Prompts of unlike lengths, padded on the left."""
    prompt = build(llama)
    ids, mask = torch.tensor([[0, 0, 7, 9], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    made = prompt.generate(ids, mask, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(made[:, :4], ids)
    for row, text in zip(made, ([7, 9], [5, 6, 7, 8]), strict=True):
        for token in cast("list[int]", row[4:].tolist()):
            embedded = prompt.model.get_input_embeddings()(torch.tensor([text]))
            whole = torch.cat([prompt.embeddings.detach()[None], embedded], 1)
            assert token == int(prompt.model(inputs_embeds=whole).logits[0, -1].argmax())
            text.append(token)
