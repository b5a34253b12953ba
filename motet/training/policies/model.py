"""A causal language model as a policy: logits where a batch counts, attention within documents."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from motet.training import llama
from motet.training.batch import Batch

FAST_LENGTH = 512  # tokens; the fast forward's memory grows with the square of a row's length


class ModelPolicy:
    """Logits of a transformers model, or of one with peft adapters; gradients reach its trainable parameters.

    The output head is computed at counted positions alone. Plain Llamas on a CPU take `llama.hidden_states` for rows
    of up to 512 tokens.

    Args:
        model: a causal language model with an output head, `PeftModel` included.
        dtype: of the computation. bfloat16 over float32 parameters is autocast; outputs are at least float32.

    Raises:
        TypeError: the model has no output head.
        PackingError: at the first packed batch, if the architecture lets tokens see other documents of their row.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self._head = _output_head(model)
        self._fast = llama.runs_fast(model)
        self._isolates = False

    def __call__(self, batch: Batch) -> Tensor:
        return self.hidden(batch)[1]

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, H) after the final norm, and logits (N, V)."""
        packed = is_packed(batch)
        if self._fast and batch.input_ids.shape[1] <= FAST_LENGTH:
            return self._plain_llama(batch, packed)
        if packed and not self._isolates:
            check_isolation(self.model)
            self._isolates = True
        positions = packed_positions(batch) if packed else None
        with _autocast(self.model, batch.input_ids.device, self.dtype), _gathered(self._head, batch.counted) as kept:
            output: Any = self.model(input_ids=batch.input_ids, position_ids=positions, use_cache=False)
        logits: Tensor = output.logits[0]
        return kept[0][0], logits.float() if logits.dtype.itemsize < 4 else logits

    def _plain_llama(self, batch: Batch, packed: bool) -> tuple[Tensor, Tensor]:
        model = cast("LlamaForCausalLM", self.model)
        where = (packed_positions(batch), batch.documents) if packed else (None, None)
        hidden = llama.hidden_states(model, batch.input_ids, self.dtype, *where)[batch.counted]
        return hidden, llama.head(model, hidden)


class PackingError(Exception):
    """The architecture cannot read packed rows."""


def is_packed(batch: Batch) -> bool:
    """Whether some row holds more than one document, or one that does not begin the row.

    Where no row does, causal attention alone keeps padding (on the right) from being seen.
    """
    first = batch.documents[:, :1]
    return bool(((batch.documents != first) & (batch.documents >= 0)).any())


def packed_positions(batch: Batch) -> Tensor:
    """(B, T) positions that restart with every document; each padding token is a document of its own.

    Without an attention mask, transformers reads the documents' boundaries from the restarts, in every kind of layer.
    """
    return batch.positions.masked_fill(batch.documents < 0, 0)


@torch.no_grad()
def check_isolation(model: nn.Module) -> None:
    """Reads two documents in one row and the second one alone.

    Raises:
        PackingError: they give different logits.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 5, 7, 9, 4, 6, 8, 10]], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=device)
    together: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:].float()
    alone: Tensor = model(input_ids=ids[:, 4:], position_ids=positions[:, 4:], use_cache=False).logits.float()
    model.train(training)
    tolerance = 0.05 if next(model.parameters()).dtype.itemsize < 4 else 1e-3
    if (together - alone).abs().max() > tolerance * alone.std().clamp_min(1e-6):
        unwrapped: Any = getattr(model, "get_base_model", lambda: model)()
        name = type(unwrapped).__name__
        raise PackingError(
            f"{name}: tokens of this architecture see other documents of a packed row; set batch.packing=none"
        )


def _output_head(model: nn.Module) -> nn.Module:
    getter: Any = getattr(model, "get_output_embeddings", None)
    found = getter() if getter is not None else None
    if found is None:
        raise TypeError(f"{type(model).__name__} has no output head: a causal language model is needed")
    return cast("nn.Module", found)


@contextlib.contextmanager
def _gathered(head: nn.Module, counted: Tensor) -> Generator[list[Tensor]]:
    """While open, the head sees its input (B, T, H) at counted positions alone, as (1, N, H); yields what it saw.

    What follows the head in the module (soft caps, scales) then works on those rows, too.
    """
    kept: list[Tensor] = []

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0][counted][None])
        return (kept[0], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield kept
    finally:
        handle.remove()


def _autocast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    wide = any(parameter.dtype == torch.float32 for parameter in model.parameters())
    if wide and dtype.itemsize < 4:
        return torch.autocast(device.type, dtype=dtype)
    return contextlib.nullcontext()
