"""The chunked loss of a composition: its values and gradients, against the formula written out in torch."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from motet.kernels.composed_loss import IGNORED, Voice, composed_cross_entropy

N, H, V = 7, 5, 23


def members(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[Voice], Tensor]:
    """Trained hidden states and head, two other voices of unlike widths, targets of which two do not count."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    others = [Voice(random(N, 9), random(V, 9), 1.0), Voice(random(N, H), random(V, H), -0.6)]
    target = torch.randint(V, (N,), generator=generator)
    target[[0, 4]] = IGNORED
    return random(N, H).requires_grad_(), random(V, H).requires_grad_(), others, target


def written_out(hidden: Tensor, head: Tensor, weight: float, others: list[Voice], target: Tensor) -> Tensor:
    """Log-softmaxes of every member, their sum, and its log-softmax at the targets."""
    z = weight * (hidden @ head.T).log_softmax(-1)
    for voice in others:
        z = z + voice.weight * (voice.hidden @ voice.head.T).log_softmax(-1)
    return torch.nn.functional.cross_entropy(z, target, ignore_index=IGNORED)


@pytest.mark.parametrize("tokens", [1, 3, 7, 100])
def test_value_and_gradients_for_any_block(tokens: int) -> None:
    hidden, head, others, target = members()
    expected = written_out(hidden, head, 0.6, others, target)
    slopes = torch.autograd.grad(expected, (hidden, head))
    got = composed_cross_entropy(hidden, head, 0.6, others, target, tokens)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * got, (hidden, head)), tuple(3 * slope for slope in slopes))


def test_gradcheck() -> None:
    hidden, head, others, target = members()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return composed_cross_entropy(h, w, -1.3, others, target, 2)

    assert cast("Any", torch.autograd).gradcheck(loss, (hidden, head))


def test_what_is_frozen_gets_no_gradient() -> None:
    hidden, head, others, target = members()
    frozen = head.detach()
    composed_cross_entropy(hidden, frozen, 1.0, others, target).backward()
    assert frozen.grad is None
    assert hidden.grad is not None
    assert hidden.grad[[0, 4]].count_nonzero() == 0, "tokens that do not count"


def test_no_target_counts() -> None:
    hidden, head, others, _ = members()
    loss = composed_cross_entropy(hidden, head, 1.0, others, torch.full((N,), IGNORED))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.count_nonzero() == 0


def test_bfloat16_members_are_composed_in_float32() -> None:
    hidden, head, others, target = members(torch.bfloat16)
    got = composed_cross_entropy(hidden, head, 0.6, others, target)
    wide = [Voice(voice.hidden.double(), voice.head.double(), voice.weight) for voice in others]
    expected = written_out(hidden.double(), head.double(), 0.6, wide, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=0.05, rtol=0.01)
    got.backward()
    assert head.grad is not None
    assert head.grad.dtype == torch.bfloat16
