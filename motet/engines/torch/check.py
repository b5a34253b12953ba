"""The load check: the model behind our attention computes what it computes in transformers.

Two streams over one text go through the slots, in unequal pieces, in the same steps. In the first, every attention
module and our attention function are given what was recorded, so that rounding does not add up: the queries, keys and
values that each module makes, and our function's answers, are compared layer by layer. The second stream runs freely,
and its distributions are compared with those of the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from motet.engines.torch.attention import ATTENTION_NAME, slot_attention
from motet.engines.torch.model import Member, ModelWork
from motet.engines.torch.packing import does_more
from motet.engines.torch.recording import AttentionCall, Recording, before_forward, first_tensor
from motet.kernels.reference import kl_divergence

WATCHED_NAME = "motet-watched"
FORCED, FREE = 0, 1  # the streams' slots
# how far queries, keys and values may lie apart, as a share of their size: a few roundings
PROJECTION_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
# KL divergence (nats per token) below which two computations are the same, however quiet the model
SAME = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 1e-4}
NOISE_FACTOR = 16.0  # KL grows with the square of a difference: four times the amplitude


class CheckFailed(Exception):
    """What differs, where and by how much."""


def check(member: Member, recording: Recording) -> None:
    """Compares a member with its model's own recording.

    Raises:
        CheckFailed
    """
    # quantised activations jump by a whole level where rounding tips them
    dtype = torch.bfloat16 if any(does_more(module) for module in member.model.modules()) else member.dtype
    run = SlotRun(member, recording)
    run.all_steps()
    if sorted(run.seen) != sorted(recording.calls):
        raise CheckFailed(f"layers {sorted(run.seen)} reached our attention, not {sorted(recording.calls)}")
    for layer, call in sorted(recording.calls.items()):
        _compare_layer(layer, call, run.seen[layer], PROJECTION_TOLERANCE[dtype])
    _compare_distributions(run, recording, SAME[dtype])


class SlotRun:
    """The recorded text of N tokens through the slots of a member.

    Attributes:
        seen: by layer, the forced stream's (query, key, value, output) of every step.
        logits: (N, V) of the free stream.
        singles: the tokens that the free stream computed one at a time.
    """

    def __init__(self, member: Member, recording: Recording) -> None:
        self.member = member
        self.recording = recording
        self.seen: dict[int, list[tuple[Tensor, ...]]] = {}
        self.logits = torch.empty(0)
        self.singles: list[int] = []
        self._forced = range(0)  # the forced stream's tokens of this step
        self._rows = slice(0, 0)  # and their place in the batch

    def all_steps(self) -> None:
        model, cache = self.member.model, self.member.cache
        AttentionInterface.register(WATCHED_NAME, self._watch)
        model.set_attn_implementation(WATCHED_NAME)
        cache.resize(2, len(self.recording.ids))
        try:
            with before_forward({call.module: self._force(call) for call in self.recording.calls.values()}):
                self.logits = torch.cat([self._step(*step) for step in _steps(len(self.recording.ids))])
        finally:
            model.set_attn_implementation(ATTENTION_NAME)
            AttentionInterface.register(WATCHED_NAME, slot_attention)  # the list would keep this run, and its model
            cache.clear()
            self.member.forward_seconds, self.member.num_forwards = 0.0, 0

    def _step(self, forced: range, free: range) -> Tensor:
        """One forward; (n, V) logits of the free stream."""
        ids = self.recording.ids
        work = [
            ModelWork(slot, tokens.start, ids[tokens.start : tokens.stop], len(tokens) if slot == FREE else 0)
            for slot, tokens in ((FORCED, forced), (FREE, free))
            if tokens
        ]
        work.sort(key=lambda item: len(item.tokens) > 1)  # single tokens come first
        offset = len(free) if work[0].slot == FREE else 0
        self._forced, self._rows = forced, slice(offset, offset + len(forced))
        self.singles += free if len(free) == 1 else ()
        return self.member.forward(work)

    def _watch(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **given: Any) -> Any:
        """Our attention function, which is given what was recorded: queries, keys and values are judged apart."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        call = self.recording.calls[layer]
        made = [tensor[:, :, self._rows] for tensor in (query, key, value)]
        query, key, value = (
            self._with(recorded, free, 2)
            for recorded, free in ((call.query, query), (call.key, key), (call.value, value))
        )
        answer = slot_attention(module, query, key, value, *rest, **given)
        self.seen.setdefault(layer, []).append((*made, answer[0][:, self._rows]))
        return answer

    def _with(self, recorded: Tensor, free: Tensor, dim: int) -> Tensor:
        """A batch with what was recorded in the forced stream's rows."""
        batch = free.clone()
        tokens = slice(self._forced.start, self._forced.stop)
        batch.narrow(dim, self._rows.start, len(self._forced)).copy_(
            recorded.narrow(dim, tokens.start, len(self._forced))
        )
        return batch

    def _force(self, call: AttentionCall) -> Callable[..., Any]:
        """A hook that puts the recorded input in the place of the forced stream's."""

        def hook(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            free = first_tensor(args, given)
            forced = self._with(call.hidden, free, 1)
            args = tuple(forced if value is free else value for value in args)
            return args, {name: forced if value is free else value for name, value in given.items()}

        return hook


def _steps(length: int) -> list[tuple[range, range]]:
    """(forced, free) tokens of each step: chunks, single tokens, and each stream once with a single token beside the
    other's chunk."""
    half = length // 2
    forced = [0, half, half + 1, min(half + 2, length), length]
    free = [0, half, half + 1, max(length - 1, half + 1), length]
    steps = zip(map(range, forced, forced[1:]), map(range, free, free[1:]), strict=True)
    return [(a, b) for a, b in steps if a or b]


def _compare_layer(layer: int, call: AttentionCall, seen: list[tuple[Tensor, ...]], tolerance: float) -> None:
    query, key, value, output = zip(*seen, strict=True)
    made = {"queries": (query, call.query), "keys": (key, call.key), "values": (value, call.value)}
    for name, (found, expected) in made.items():
        distance = relative_distance(torch.cat(found, 2)[0].float(), expected[0].float()).amax(0)
        _refuse_beyond(distance / tolerance, f"layer {layer}: attention: its {name}")
    excess = (torch.cat(output, 1) - call.output).abs() / call.tolerance.clamp_min(torch.finfo(torch.float32).tiny)
    _refuse_beyond(excess[0].flatten(1).amax(-1), f"layer {layer}: attention: its answers")


def relative_distance(found: Tensor, expected: Tensor) -> Tensor:
    """(H, N) distances of rows (H, N, D), as a share of the expected row's or the usual row's size.

    Every channel counts in units of its own size over the N tokens, so that outlier channels do not hide the others.
    """
    size = expected.pow(2).mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    off, rows = ((found - expected) / size).pow(2).mean(-1), (expected / size).pow(2).mean(-1)
    return (off / rows.clamp_min(1)).sqrt()


def _compare_distributions(run: SlotRun, recording: Recording, same: float) -> None:
    """The median over a stream's single tokens, and over the others: where a router's near tie falls the other way,
    some tokens differ much in a model that is right; where a computation is wrong, most do."""
    width = run.logits.shape[-1]
    plain = recording.logits[:, :width].log_softmax(-1)
    noise = float(kl_divergence(plain, recording.exact_logits[:, :width].log_softmax(-1)).mean())
    distance = kl_divergence(plain, run.logits.float().log_softmax(-1))
    single = torch.zeros(len(distance), dtype=torch.bool, device=distance.device)
    single[run.singles] = True
    for name, rows in (("prompts", distance[~single]), ("single tokens", distance[single])):
        far, allowed = float(rows.median()), NOISE_FACTOR * noise + same
        if len(rows) and not far <= allowed:
            raise CheckFailed(
                f"the whole model: its distributions of {name} differ from a plain forward's by {far:.3g} nats "
                f"(rounding alone: {noise:.3g}; allowed: {allowed:.3g})"
            )


def _refuse_beyond(excess: Tensor, what: str) -> None:
    """`excess` (N,): differences in units of what rounding may do, by position."""
    if not bool((excess <= 1).all()):
        position = int(excess.argmax())
        times = f"{float(excess[position]):.3g} times what rounding does"
        raise CheckFailed(f"{what} differ from those of the module's own eager attention by {times} (token {position})")
