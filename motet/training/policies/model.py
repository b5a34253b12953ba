"""A causal language model as a policy: logits where a batch counts, attention within documents."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from motet.models.heads import Seen
from motet.training import llama
from motet.training.batch import Batch
from motet.training.policies.attention import install, unmasked
from motet.training.policies.soft_prompt import SoftPromptModel
from motet.training.policy import Scores

FAST_LENGTH = 512  # tokens; the fast forward's memory grows with the square of a row's length
SAMPLE = (3, 5, 7, 9, 4, 6, 8, 10)  # token ids that any vocabulary has, to try an architecture with


class ModelPolicy:
    """Logits of a transformers model, or of one with peft adapters or a soft prompt; gradients reach its trainable
    parameters.

    The output head is computed at counted positions alone. Plain Llamas on a CPU take `llama.hidden_states` for rows
    of up to 512 tokens.

    Args:
        model: a causal language model with an output head, `PeftModel` and `SoftPromptModel` included.
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
        self._flat: bool | None = None  # whether rows are read end to end; None: not tried yet
        self._apart: bool | None = None  # whether the head computes what the model does; None: not tried yet

    def __call__(self, batch: Batch) -> Tensor:
        return self.hidden(batch)[1]

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, H) after the final norm, and logits (N, V)."""
        if self._runs_fast(batch):
            hidden = self._plain_llama(batch)
            return hidden, self._llama_logits(slice(None), hidden)
        states, logits = self._read(batch, head=True)
        return states, _widened(logits)

    def seen(self, batch: Batch) -> Seen:
        """Last hidden states and logits as the model is served: without gradients and dropout."""
        with torch.no_grad(), evaluating(self.model):
            return Seen(*self.hidden(batch), self._embedded)

    @torch.no_grad()
    def _embedded(self, ids: Tensor) -> Tensor:
        return self._base.get_input_embeddings()(ids)

    def scores(self, batch: Batch) -> Scores:
        """The logits in blocks of rows, from the last hidden states."""
        width = cast("int", self._base.config.get_text_config().vocab_size)
        trains = any(parameter.requires_grad for parameter in self._head.parameters())
        if self._runs_fast(batch):
            return Scores((self._plain_llama(batch),), self._llama_logits, width, trains)
        if self._apart is None:
            self._apart = self._head_stands_apart()
        if not self._apart:
            return Scores((self.hidden(batch)[1],), _as_they_are, width)
        return Scores((self._read(batch, head=False)[0],), self._logits, width, trains)

    @property
    def _base(self) -> Any:
        """The causal language model itself, without what peft wraps around it."""
        return getattr(self.model, "get_base_model", lambda: self.model)()

    def _runs_fast(self, batch: Batch) -> bool:
        return self._fast and batch.input_ids.shape[1] <= FAST_LENGTH

    def _plain_llama(self, batch: Batch) -> Tensor:
        where = (packed_positions(batch), batch.documents) if is_packed(batch) else (None, None)
        model = cast("LlamaForCausalLM", self.model)
        return llama.hidden_states(model, batch.input_ids, self.dtype, *where)[batch.counted]

    def _read(self, batch: Batch, *, head: bool) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, H), and logits (N, V), or none (0, V) without the head."""
        inputs, counted = self._inputs(self.model.prefixed(batch) if isinstance(self.model, SoftPromptModel) else batch)
        with (
            self._autocast(),
            unmasked() if self._flat else contextlib.nullcontext(),
            _gathered(self._head, counted, head) as kept,
        ):
            output: Any = self.model(**inputs, use_cache=False)
        return kept[0], output.logits[0]

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """What the model is given, and which of its positions count: all documents end to end in one row, without
        padding, where its attention stays within documents by their lengths; else the rows as they are."""
        if self._flat is None:
            self._flat = install(self._base) and _reads_end_to_end(self.model)
        if not self._flat:
            packed = is_packed(batch)
            if packed and not self._isolates:
                check_isolation(self.model)
                self._isolates = True
            positions = packed_positions(batch) if packed else None
            return {"input_ids": batch.input_ids, "position_ids": positions}, batch.counted
        inside = batch.documents >= 0
        lengths = cast("list[int]", torch.bincount(batch.documents[inside]).tolist())
        rows = {"input_ids": batch.input_ids[inside][None], "position_ids": batch.positions[inside][None]}
        return {**rows, "document_lengths": lengths}, batch.counted[inside][None]

    def _llama_logits(self, _: slice, hidden: Tensor) -> Tensor:
        return llama.head(cast("LlamaForCausalLM", self.model), hidden)

    def _logits(self, _: slice, hidden: Tensor) -> Tensor:
        """Logits (n, V) of last hidden states (n, H): the head, and what the module does behind it."""
        base, output = self._base, BaseModelOutputWithPast(last_hidden_state=cast("Any", hidden[None]))
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        with self._autocast(), _answering(getattr(base, base.base_model_prefix), output):
            return _widened(base(input_ids=ids, use_cache=False).logits.flatten(0, 1))

    @torch.no_grad()
    def _head_stands_apart(self) -> bool:
        """Whether `_logits` gives what the model itself gives on a sample."""
        ids = torch.tensor([SAMPLE], device=next(self.model.parameters()).device)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        with evaluating(self.model), self._autocast(), _gathered(self._head, everywhere, True) as kept:
            whole: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        try:
            return torch.equal(self._logits(slice(None), kept[0]), _widened(whole))
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._base.dtype == torch.float32 and self.dtype.itemsize < 4:
            return torch.autocast(self._base.device.type, dtype=self.dtype)
        return contextlib.nullcontext()


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


def check_isolation(model: nn.Module) -> None:
    """Reads two documents in one row and the second one alone.

    Raises:
        PackingError: they give different logits.
    """
    if not _isolates(model):
        unwrapped: Any = getattr(model, "get_base_model", lambda: model)()
        name = type(unwrapped).__name__
        raise PackingError(
            f"{name}: tokens of this architecture see other documents of a packed row; set batch.packing=none"
        )


def _reads_end_to_end(model: nn.Module) -> bool:
    """Whether the documents' lengths keep them apart in one row."""
    try:
        with unmasked():
            return _isolates(model, document_lengths=[len(SAMPLE) // 2] * 2)
    except (TypeError, ValueError):  # the module hands no keywords through
        return False


@torch.no_grad()
def _isolates(model: nn.Module, **lengths: Any) -> bool:
    """Whether the second of two documents in one row gives what it gives alone."""
    device, half = next(model.parameters()).device, len(SAMPLE) // 2
    ids = torch.tensor([SAMPLE], device=device)
    positions = torch.tensor([[*range(half), *range(half)]], device=device)
    with evaluating(model):
        together: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, **lengths).logits[:, half:]
        alone: Tensor = model(input_ids=ids[:, half:], position_ids=positions[:, half:], use_cache=False).logits
    tolerance = 0.1 if next(model.parameters()).dtype.itemsize < 4 else 1e-3  # a leak moves logits by their own size
    return bool((together - alone).float().square().mean().sqrt() <= tolerance * alone.float().std().clamp_min(1e-6))


def _output_head(model: nn.Module) -> nn.Module:
    getter: Any = getattr(model, "get_output_embeddings", None)
    found = getter() if getter is not None else None
    if found is None:
        raise TypeError(f"{type(model).__name__} has no output head: a causal language model is needed")
    return cast("nn.Module", found)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Without dropout."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextlib.contextmanager
def _gathered(head: nn.Module, counted: Tensor, computed: bool) -> Generator[list[Tensor]]:
    """While open, the head sees its input (B, T, H) at counted positions alone, as (1, N, H), or as (1, 0, H) unless
    it is to be computed; yields (N, H).

    What follows the head in the module (soft caps, scales) then works on those rows, too.
    """
    kept: list[Tensor] = []

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0][counted])
        return (kept[0][None] if computed else kept[0][None, :0], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield kept
    finally:
        handle.remove()


@contextlib.contextmanager
def _answering(module: nn.Module, output: object) -> Generator[None]:
    """While open, the module computes nothing and returns `output`."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward


def _as_they_are(_: slice, logits: Tensor) -> Tensor:
    return logits


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
