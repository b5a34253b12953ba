"""The load check: the model behind our attention computes what it computes in transformers.

Two streams over one text go through the slots, in unequal pieces, in the same steps. In the first, every attention
module and our attention function are given what was recorded, so that rounding does not add up: the queries, keys and
values that each module makes, and our function's answers, are compared layer by layer. The second stream runs freely,
and its distributions are compared with those of the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from motet.server.engines.torch.attention import ATTENTION_NAME, slot_attention
from motet.server.engines.torch.recording import AttentionCall, Recording, before_forward, first_tensor

if TYPE_CHECKING:
    from motet.server.engines.torch.model import Member

WATCHED_NAME = "motet-watched"
FORCED, FREE = 0, 1  # the streams' slots
# how far queries, keys and values may lie apart, as a share of their size: a few roundings
PROJECTION_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
# KL divergence (nats per token) below which two computations are the same, however quiet the model
SAME = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 1e-4}
NOISE_FACTOR = 16.0  # KL grows with the square of a difference: four times the amplitude


class CheckFailed(Exception):
    """What differs, where and by how much."""


def check(member: Member, recording: Recording, tolerance: float | None = None) -> None:
    """Compares a member with its model's own recording.

    Args:
        tolerance: of queries, keys and values, relative; None is that of the dtype.

    Raises:
        CheckFailed
    """
    run = SlotRun(member, recording)
    run.all_steps()
    if sorted(run.seen) != sorted(recording.calls):
        raise CheckFailed(f"layers {sorted(run.seen)} reached our attention, not {sorted(recording.calls)}")
    for layer, call in sorted(recording.calls.items()):
        _compare_layer(layer, call, run.seen[layer], tolerance or PROJECTION_TOLERANCE[member.dtype])
    _compare_distributions(torch.cat(run.logits), recording, SAME[member.dtype])


class SlotRun:
    """The recorded text through the slots of a member.

    Attributes:
        seen: by layer, the forced stream's (query, key, value, output) of every step.
        logits: the free stream's, (n, V) of every step.
    """

    def __init__(self, member: Member, recording: Recording) -> None:
        self.member = member
        self.recording = recording
        self.seen: dict[int, list[tuple[Tensor, ...]]] = {}
        self.logits: list[Tensor] = []
        self._span = slice(0, 0)

    def all_steps(self) -> None:
        model, cache = self.member.model, self.member.cache
        AttentionInterface.register(WATCHED_NAME, self._watch)
        model.set_attn_implementation(WATCHED_NAME)
        cache.resize(2, len(self.recording.ids))
        try:
            with before_forward({call.module: self._force(call) for call in self.recording.calls.values()}):
                for forced, free in _steps(len(self.recording.ids)):
                    self._step(forced, free)
        finally:
            model.set_attn_implementation(ATTENTION_NAME)
            cache.clear()
            self.member.forward_seconds, self.member.num_forwards = 0.0, 0

    def _step(self, forced: range, free: range) -> None:
        """One forward; the forced stream's tokens come first in the batch, being in the lower slot or a single."""
        from motet.server.engines.torch.model import ModelWork

        ids = self.recording.ids
        self._span = slice(forced.start, forced.stop)
        work = [ModelWork(FORCED, forced.start, ids[self._span], 0)]
        if free:
            work.append(ModelWork(FREE, free.start, ids[free.start : free.stop], len(free)))
        self.logits.append(self.member.forward(work))

    def _watch(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **given: Any) -> Any:
        """Our attention function, which is given what was recorded: queries, keys and values are judged apart."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        call = self.recording.calls[layer]
        count = self._span.stop - self._span.start
        handed = (query, key, value)
        recorded = (call.query[:, :, self._span], call.key[:, :, self._span], call.value[:, :, self._span])
        query, key, value = (
            torch.cat([mine, free[:, :, count:]], 2) for mine, free in zip(recorded, handed, strict=True)
        )
        answer = slot_attention(module, query, key, value, *rest, **given)
        self.seen.setdefault(layer, []).append((*(tensor[:, :, :count] for tensor in handed), answer[0][:, :count]))
        return answer

    def _force(self, call: AttentionCall) -> Callable[..., Any]:
        """A hook that puts the recorded input in the place of the forced stream's."""

        def hook(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            free = first_tensor(args, given)
            recorded = call.hidden[:, self._span]
            forced = torch.cat([recorded, free[:, recorded.shape[1] :]], 1)
            args = tuple(forced if value is free else value for value in args)
            return args, {name: forced if value is free else value for name, value in given.items()}

        return hook


def _steps(length: int) -> list[tuple[range, range]]:
    """(forced, free) tokens of each step: two chunks, two single tokens, a single token beside a chunk, a chunk."""
    half = max(length // 2 - 3, 0)
    steps = [
        (range(half), range(half)),
        (range(half, half + 1), range(half, half + 1)),
        (range(half + 1, half + 2), range(half + 1, length)),
        (range(half + 2, length), range(0)),
    ]
    whole = range(length)
    return [(whole[f.start : f.stop], whole[r.start : r.stop]) for f, r in steps if whole[f.start : f.stop]]


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


def _compare_distributions(found: Tensor, recording: Recording, same: float) -> None:
    width = found.shape[-1]
    plain = recording.logits[: found.shape[0], :width].log_softmax(-1)
    noise = divergence(plain, recording.exact_logits[:, :width].log_softmax(-1))
    distance = divergence(plain, found.float().log_softmax(-1))
    for name, reduced in (("mean", torch.mean), ("largest", torch.amax)):
        far, allowed = float(reduced(distance)), NOISE_FACTOR * float(reduced(noise)) + same
        if not far <= allowed:
            raise CheckFailed(
                f"the whole model: its distributions through the slots differ from a plain forward's by {far:.3g} nats "
                f"({name} over the text; rounding alone: {float(reduced(noise)):.3g}, allowed {allowed:.3g})"
            )


def divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p ‖ q) in nats per row of two (N, V) tables of log-probs."""
    return (logp.exp() * (logp - logq)).sum(-1)


def _refuse_beyond(excess: Tensor, what: str) -> None:
    """`excess` (N,): differences in units of what rounding may do, by position."""
    if not bool((excess <= 1).all()):
        position = int(excess.argmax())
        times = f"{float(excess[position]):.3g} times what rounding does"
        raise CheckFailed(f"{what} differ from those of the module's own eager attention by {times} (token {position})")
