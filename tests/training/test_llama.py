"""The training forward equals the Hugging Face module, forward and backward."""

from __future__ import annotations

import torch

from motet.training.llama import logits, make_llama


def test_logits_and_gradients_equal_the_modules_own() -> None:
    model = make_llama(50, hidden=32, layers=2, heads=4, intermediate=48, max_length=64, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    ids = torch.randint(0, 50, (3, 17), generator=generator)
    probe = torch.randn((3, 17, 50), generator=generator, dtype=torch.float64)
    ours, theirs = logits(model, ids, torch.float64), model(input_ids=ids, use_cache=False).logits
    # the module's own normalisation works in float32, whatever the parameters are
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    named = list(model.named_parameters())
    parameters = [parameter for _, parameter in named]
    expected = torch.autograd.grad((theirs * probe).sum(), parameters)
    actual = torch.autograd.grad((ours * probe).sum(), parameters)
    for (name, _), one, other in zip(named, actual, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * max(1.0, scale), msg=f"gradient of {name}")


def test_bfloat16_stays_close_and_returns_float32() -> None:
    model = make_llama(50, hidden=32, layers=2, heads=4, intermediate=48, max_length=64, seed=0)
    ids = torch.arange(20).view(2, 10)
    low = logits(model, ids, torch.bfloat16)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, logits(model, ids, torch.float32), rtol=0, atol=0.02)


def test_a_seed_names_one_initialisation() -> None:
    def embedding(seed: int) -> torch.Tensor:
        made = make_llama(20, hidden=8, layers=1, heads=2, intermediate=8, max_length=16, seed=seed)
        return made.get_input_embeddings().weight  # pyright: ignore[reportReturnType]

    assert torch.equal(embedding(3), embedding(3))
    assert not torch.equal(embedding(3), embedding(4))
