"""The attention function that unmodified Hugging Face modules call: it writes into slots and attends over them.

All tokens of a model's step travel as one flat row `(1, N)`: first one token for each decoding stream, then longer
segments (prompt chunks, scored text). Nothing is padded but the key length of the decoding rows. Grouped queries are
folded into the query length, so keys and values are never repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

ATTENTION_NAME = "motet"


class KeyValues(Protocol):
    """Where a layer's keys and values lie: `(slots, kv_heads, length, head_dim)` each. The first slot has the number
    `first`."""

    @property
    def first(self) -> int: ...
    @property
    def keys(self) -> Sequence[Tensor]: ...
    @property
    def values(self) -> Sequence[Tensor]: ...


class KeyValueStore(Protocol):
    """All slots of a model."""

    def arena_of(self, index: int) -> KeyValues: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` consecutive tokens of one slot: positions `start …`, at `offset …` in the flat batch."""

    slot: int
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A step that runs again and again, as a captured graph does: what changes from time to time lies on the device.

    Attributes:
        positions: (n,) int64 of the single tokens, in the place of their segments' starts.
        length: keys that are read of every slot; all positions lie below it.
    """

    positions: Tensor
    length: int


class StepContext:
    """Everything that the attention of one forward needs to know; built once per step and model.

    The first `len(decode)` tokens of the batch are single tokens of different slots, in ascending slot order. With
    `replay` one context serves many forwards of single tokens: see `again`.
    """

    def __init__(
        self,
        store: KeyValueStore,
        decode: Sequence[Segment],
        longer: Sequence[Segment],
        replay: Replay | None = None,
    ) -> None:
        self.decode = decode
        self._blocks = [
            DecodeBlock(arena, list(rows), replay) for arena, rows in groupby(decode, lambda s: store.arena_of(s.slot))
        ]
        self._longer = [(store.arena_of(segment.slot), segment) for segment in longer]
        self._masks: dict[object, Tensor | None] = {}

    def again(self) -> None:
        """Before the next forward of a `Replay`: masks are made anew, from the positions of that moment."""
        for block in self._blocks:
            block.masks.clear()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """Attention of the flat batch: query (1, H, N, D), key and value (1, KH, N, D) → (1, N, H, D_v)."""
        parts = [
            block.attend(layer, query[0, :, block.span], key[0, :, block.span], value[0, :, block.span], form)
            for block in self._blocks
        ]
        for arena, segment in self._longer:
            span = slice(segment.offset, segment.offset + segment.length)
            keys, values = arena.keys[layer], arena.values[layer]
            part = query[:, :, span], key[0, :, span], value[0, :, span]
            parts.append(self._segment(keys, values, *part, segment.slot - arena.first, segment, form))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _segment(
        self,
        keys: Tensor,
        values: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slot: int,
        segment: Segment,
        form: AttentionForm,
    ) -> Tensor:
        """Several tokens of one slot: query (1, H, T, D) → (T, H, D_v)."""
        _, heads, length, dim = query.shape
        end = segment.start + segment.length
        keys[slot, :, segment.start : end] = key
        values[slot, :, segment.start : end] = value
        groups = heads // keys.shape[1]
        mask = self._mask(
            (segment.start, length, form.window, groups),
            lambda: causal_mask(segment.start, length, form.window, query).repeat(groups, 1),
        )
        past = slice(slot, slot + 1)
        folded = query.reshape(1, keys.shape[1], groups * length, dim)
        mixed = attention(folded, keys[past, :, :end], values[past, :, :end], mask, form)
        return mixed.reshape(heads, length, -1).transpose(0, 1)

    def _mask(self, key: object, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Masks are the same in every layer of a kind: made once per step."""
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]


class DecodeBlock:
    """Single tokens of slots of one arena, which are attended to together: consecutive tokens of the batch.

    Rows of like lengths lie in one arena, so little is read in vain where some streams are long.

    Attributes:
        masks: by window, the same in every layer of a kind.
    """

    def __init__(self, arena: KeyValues, decode: Sequence[Segment], replay: Replay | None = None) -> None:
        self.span = slice(decode[0].offset, decode[-1].offset + 1)
        self.masks: dict[int | None, Tensor | None] = {}
        self._arena = arena
        device = arena.keys[0].device
        slots = [segment.slot - arena.first for segment in decode]
        self._rows = slots[-1] + 1  # arena rows read; gaps carry unused queries
        self._dense = self._rows == len(slots)
        self._slots = torch.tensor(slots, dtype=torch.int64, device=device)
        if replay is not None:
            self._single, self._key_length, self._positions = None, replay.length, replay.positions[self.span]
            return
        self._single = (slots[0], decode[0].start) if len(slots) == 1 else None
        self._key_length = max(segment.start + 1 for segment in decode)
        self._positions = torch.tensor([s.start for s in decode], dtype=torch.int64, device=device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """One token per slot: query (H, n, D) → (n, H, D_v)."""
        heads, _, dim = query.shape
        rows, length = self._rows, self._key_length
        keys, values = self._arena.keys[layer], self._arena.values[layer]
        if form.window not in self.masks:
            self.masks[form.window] = self._mask(form.window, query)
        mask = self.masks[form.window]
        if self._single is not None:
            slot, position = self._single
            keys[slot, :, position] = key[:, 0]
            values[slot, :, position] = value[:, 0]
            keys, values = keys[slot:rows, :, :length], values[slot:rows, :, :length]
            folded = query.reshape(1, keys.shape[1], -1, dim)
            return attention(folded, keys, values, mask, form).reshape(1, heads, -1)
        keys[self._slots, :, self._positions] = key.transpose(0, 1)
        values[self._slots, :, self._positions] = value.transpose(0, 1)
        stacked = query.transpose(0, 1)
        if not self._dense:
            stacked = query.new_zeros(rows, heads, dim).index_copy_(0, self._slots, stacked)
        folded = stacked.reshape(rows, keys.shape[1], -1, dim)
        mixed = attention(folded, keys[:rows, :, :length], values[:rows, :, :length], mask, form)
        mixed = mixed.reshape(rows, heads, -1)
        return mixed if self._dense else mixed[self._slots]

    def _mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """(rows, 1, 1, key_length): additive; unused rows see position 0 only, so that they stay finite. None where a
        single row sees all."""
        if self._single is not None:
            _, position = self._single
            return None if window is None or position < window else causal_mask(position, 1, window, like)
        positions = torch.zeros(self._rows, dtype=torch.int64, device=like.device)
        positions[self._slots] = self._positions
        visible = _visible(positions[:, None], torch.arange(self._key_length, device=like.device), window)
        return _additive(visible, like)[:, None, None]


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What distinguishes the families: scale of the scores, sliding window, soft cap, attention sinks (H,)."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
    """Softmax attention with folded groups: query (B, KH, G·T, D), keys (B, KH, L, D) → (B, KH, G·T, D_v)."""
    if form.softcap is None and form.sinks is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=form.scaling)
    # in float32 from the start: scores of a hundred, rounded to bfloat16, move their weights by a quarter
    scores = (query.float() @ keys.float().transpose(-1, -2)) * form.scaling
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is not None:
        scores = scores + mask
    if form.sinks is None:
        return scores.softmax(-1).to(values.dtype) @ values
    batch, kv_heads, folded, _ = scores.shape
    groups = form.sinks.shape[0] // kv_heads
    sinks = form.sinks.float().view(kv_heads, groups, 1).expand(-1, -1, folded // groups)
    sinks = sinks.reshape(1, kv_heads, folded, 1).expand(batch, -1, -1, -1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return weights.to(values.dtype) @ values


def causal_mask(start: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """(length, start + length) additive mask of queries at positions `start …` over all keys before them."""
    positions = torch.arange(start, start + length, device=like.device)
    return _additive(_visible(positions[:, None], torch.arange(start + length, device=like.device), window), like)


def _visible(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    visible = keys <= positions
    return visible if window is None else visible & (keys > positions - window)


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, -math.inf)


# What the forward that runs now attends over. Not a keyword of the forward: some models hand none to their layers.
STEP: ContextVar[StepContext] = ContextVar("step")


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = -1,  # −1: not passed; a layer may pass None to say that it has none
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers; it works within the forward's `STEP`."""
    window = getattr(module, "sliding_window", None) if sliding_window == -1 else sliding_window
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    form = AttentionForm(scale, window or None, softcap, s_aux)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return STEP.get().attend(layer, query, key, value, form), None


AttentionInterface.register(ATTENTION_NAME, slot_attention)
