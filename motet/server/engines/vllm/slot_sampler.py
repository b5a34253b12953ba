"""Where Model Runner V2 samples: what the composer has drawn is handed over, other rows are vLLM's own to draw.

This runner keeps its tokens on the device; the rows' own lists of drawn tokens are kept here, on the host. It takes
the sampler's word for how many tokens a request got and how many computed ones are void: linked requests of which not
all came as far get none, and compute their last token again in the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from motet.server.engines.vllm.internals import touch
from motet.server.engines.vllm.slots import Slots
from motet.server.engines.vllm.table import Row, Step, Table


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's batch of N requests, on the host.

    `bounds` (N + 1): request i takes tokens at logits bounds[i] to bounds[i + 1]; `reaches` (N): whether its last known
    token is among those that were computed; `read` (R): the token at each of the logits' positions, if there are drafts.
    """

    bounds: list[int]
    reaches: list[bool]
    read: list[int]

    @property
    def size(self) -> int:
        return len(self.reaches)

    def drafts(self, number: int) -> list[int]:
        return self.read[self.bounds[number] + 1 : self.bounds[number + 1]]


class SlotSampler:
    """Stands for vLLM's `Sampler` or `RejectionSampler`, which draws for the requests whose drawing is vLLM's.

    Args:
        inner: vLLM's.
        slots: the rows' own lists of drawn tokens are extended.
    """

    def __init__(self, inner: Any, table: Table, slots: Slots) -> None:
        self._inner = inner
        self._table = table
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, logits: Tensor, input_batch: Any, *drafts: Any) -> Any:
        """vLLM's SamplerOutput of one step.

        Args:
            logits: (R, V) composed log-probs of the positions behind which tokens are taken.
            drafts: what vLLM's rejection sampler takes beside them.
        """
        step = self._table.take_step()
        inner = self._inner(logits, input_batch, *drafts) if step is None or step.others else None
        rows = [self._slots.row(number) for number in range(input_batch.num_reqs)]
        if inner is not None and not any(rows):
            return inner
        layout = _layout(input_batch)
        taken = _in_step(rows, _taken(step, inner, layout))
        for number, tokens in enumerate(taken):
            self._slots.extend(number, tokens)
        return _output(taken, _logprobs(step, inner, layout), layout, logits.device)


def _layout(input_batch: Any) -> Layout:
    computed = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
    read = input_batch.input_ids[input_batch.logits_indices].tolist() if input_batch.num_draft_tokens else []
    return Layout(
        input_batch.cu_num_logits_np.tolist(), (computed >= input_batch.prefill_len_np).tolist(), cast("list[int]", read)
    )


def _taken(step: Step | None, inner: Any, layout: Layout) -> list[list[int]]:
    """The tokens that each request gets."""
    if step is None:
        return _inner_tokens(inner)
    drawn = cast("list[int]", step.tokens[:, 0].tolist())
    taken: list[list[int]] = []
    own = _inner_tokens(inner) if step.others else []
    others = set(step.others)
    for number, first in enumerate(layout.bounds[:-1]):
        if first in others:
            taken.append(own[number])
        elif layout.reaches[number]:
            taken.append(_verified(drawn[first : layout.bounds[number + 1]], layout.drafts(number)))
        else:
            taken.append([])
    return taken


def _inner_tokens(inner: Any) -> list[list[int]]:
    counts = inner.num_sampled.tolist()
    return [tokens[:count] for tokens, count in zip(inner.sampled_token_ids.tolist(), counts, strict=True)]


def _verified(drawn: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """The drafts that were drawn too, and the first token that was not guessed."""
    right = next((i for i, (token, draft) in enumerate(zip(drawn, drafts, strict=False)) if token != draft), len(drafts))
    return list(drawn[: right + 1])


def _in_step(rows: Sequence[Row | None], taken: Sequence[list[int]]) -> list[list[int]]:
    """Linked requests get one token each, or none if one of them has not come as far."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row is not None and row.spec.link is not None:
            groups.setdefault(row.spec.link.group, []).append(number)
    kept = list(taken)
    for numbers in groups.values():
        members = [cast(Row, rows[number]) for number in numbers]
        whole = all(taken[number] for number in numbers) and len(numbers) == cast(Any, members[0].spec.link).size
        together = whole and len({len(row.output) for row in members}) == 1
        for number in numbers:
            kept[number] = taken[number][:1] if together else []
    return kept


def _logprobs(step: Step | None, inner: Any, layout: Layout) -> Any:
    """vLLM's LogprobsTensors of all R positions, None if none are reported."""
    known = None if inner is None else inner.logprobs_tensors
    if step is None:
        return known
    tokens, logprobs = step.tokens, step.logprobs
    ranks = torch.ones(tokens.shape[0], dtype=torch.int64, device=tokens.device)
    if known is not None and step.others:
        places = torch.tensor(step.others, device=tokens.device)
        width = max(tokens.shape[1], known.logprob_token_ids.shape[1])
        tokens, logprobs = _widened(tokens, width), _widened(logprobs, width)
        tokens[places] = _widened(known.logprob_token_ids[places], width).to(tokens.dtype)
        logprobs[places] = _widened(known.logprobs[places], width)
        ranks[places] = known.selected_token_ranks[places]
    bounds = layout.bounds if layout.bounds[-1] != layout.size else None
    return touch("LogprobsTensors")(tokens, logprobs, ranks, bounds)


def _widened(values: Tensor, width: int) -> Tensor:
    """A copy with columns of zeros, which nobody reads."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _output(taken: Sequence[list[int]], logprobs: Any, layout: Layout, device: torch.device) -> Any:
    width = max(b - a for a, b in zip(layout.bounds, layout.bounds[1:], strict=False))
    sampled = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in taken], device=device)
    counts = [b - a for a, b in zip(layout.bounds, layout.bounds[1:], strict=False)]
    void = [
        count - len(tokens) if reaches else 0
        for count, tokens, reaches in zip(counts, taken, layout.reaches, strict=True)
    ]
    return touch("SamplerOutputV2")(
        sampled_token_ids=sampled,
        logprobs_tensors=logprobs,
        num_nans=None,
        num_sampled=torch.tensor([len(tokens) for tokens in taken], dtype=torch.int32, device=device),
        num_rejected=torch.tensor(void, dtype=torch.int32, device=device),
    )
