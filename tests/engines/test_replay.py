"""A step context that serves many forwards, as a captured graph needs it: what the engine's own contexts give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.engines.torch.attention import ATTENTION_NAME, STEP, Replay, Segment, StepContext
from motet.engines.torch.model import Member, ModelWork
from tests.tiny import VOCAB, llama, mistral

LENGTHS = (5, 12, 8)  # of the slots' texts; one is longer than mistral's window


def member_of(make: Callable[[], PreTrainedModel]) -> Member:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    member = Member("tiny", model, 64, VOCAB, [(2, 12, 12)] * 2)
    member.cache.resize(len(LENGTHS), 32)
    member.forward([ModelWork(i, 0, [(7 * i + j) % VOCAB for j in range(n)], 1) for i, n in enumerate(LENGTHS)])
    return member


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("make", [llama, mistral])
@torch.inference_mode()
def test_positions_move_without_a_new_context(make: Callable[[], PreTrainedModel], rows: int) -> None:
    """Three tokens, one after another: the context and the tensors that it reads stay."""
    member = member_of(make)
    positions = torch.tensor(LENGTHS[:rows])
    ids = torch.zeros(1, rows, dtype=torch.int64)
    segments = [Segment(i, 0, 1, i) for i in range(rows)]
    context = StepContext(member.cache, segments, [], Replay(positions, 24))

    def replayed() -> Tensor:
        context.again()
        current = STEP.set(context)
        try:
            return member.model(input_ids=ids, position_ids=positions[None], use_cache=False).logits[0]
        finally:
            STEP.reset(current)

    for step in range(3):
        ids.copy_(torch.tensor([[(31 * step + 5 * i) % VOCAB for i in range(rows)]]))
        found = replayed()
        work = [ModelWork(i, LENGTHS[i] + step, [int(ids[0, i])], 1) for i in range(rows)]
        torch.testing.assert_close(found, member.forward(work), atol=1e-5, rtol=1e-5)
        positions += 1
