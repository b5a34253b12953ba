"""Model Runner V2's batch, and the composer's step as the results of its sampler and rejection sampler.

This runner keeps its tokens on the device; the rows' own lists of drawn tokens are kept here, on the host. It takes the
sampler's word for how many tokens a request gets and how many computed ones are void: linked requests of which not all
came as far get none, and compute their last token again in the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from motet.engines.vllm.internals import touch
from motet.engines.vllm.sampler import verify
from motet.engines.vllm.table import DrawnStep, Row, Table
from motet.engines.vllm.wire import Link


class Slots:
    """See `table.Batch`. A request has its slot until it ends or is preempted; a step's batch is an order of slots.

    The rows' `output` must be lists: they are extended here, since the runner keeps its tokens on the device.
    """

    def __init__(self, size: int) -> None:
        self._rows: list[Row | None] = [None] * size
        self._outputs: list[list[int]] = [[] for _ in range(size)]
        self._names: dict[str, int] = {}
        self._order: list[int] = []

    def add(self, name: str, slot: int, row: Row | None, output: list[int]) -> None:
        """`output`: the row's own list."""
        self._names[name], self._rows[slot], self._outputs[slot] = slot, row, output

    def remove(self, name: str) -> None:
        slot = self._names.pop(name, None)
        if slot is not None:
            self._rows[slot] = None

    def arrange(self, order: Sequence[int]) -> None:
        """The slots of the next step's batch."""
        self._order = list(order)

    def row(self, index: int) -> Row | None:
        return self._rows[self._order[index]] if index < len(self._order) else None

    def rows(self) -> list[Row | None]:
        return [self._rows[slot] for slot in self._order]

    def extend(self, index: int, tokens: Sequence[int]) -> None:
        """The request in that place of the batch got tokens."""
        self._outputs[self._order[index]].extend(tokens)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """A step's batch of B requests, of which R positions give tokens.

    `bounds` (B + 1): those of request i are bounds[i] to bounds[i + 1], the last known token and then its drafts.
    `reaches` (B): whether its last known token was computed; else it is still reading its prompt.
    """

    bounds: list[int]
    reaches: list[bool]

    @property
    def sizes(self) -> list[int]:
        return [end - start for start, end in pairwise(self.bounds)]


class SlotSampler:
    """Stands for vLLM's `Sampler` or `RejectionSampler`.

    Args:
        inner: vLLM's, which draws where a request names no composition or leaves its drawing to vLLM.
        slots: what the rows got is noted there.
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
            logits: (R, V) as the composer gave them.
            drafts: what vLLM's rejection sampler takes beside them.
        """
        step = self._table.take_step()
        theirs = self._inner(logits, input_batch, *drafts) if step is None or step.others else None
        rows = [self._slots.row(number) for number in range(input_batch.num_reqs)]
        if not any(rows):
            return theirs
        layout = _layout(input_batch)
        taken = keep_in_step(rows, _taken(step, theirs, layout, input_batch))
        for number, tokens in enumerate(taken):
            self._slots.extend(number, tokens)
        return _output(taken, _logprobs(step, theirs, layout), layout, logits.device)


def keep_in_step(rows: Sequence[Row | None], taken: Sequence[list[int]]) -> list[list[int]]:
    """What each request keeps: linked ones a token each, or none if one of them did not come as far.

    A draft of theirs is never kept: each has guessed for itself.
    """
    groups: dict[str, list[tuple[int, Row, Link]]] = {}
    for number, row in enumerate(rows):
        link = None if row is None else row.spec.link
        if row is not None and link is not None:
            groups.setdefault(link.group, []).append((number, row, link))
    kept = list(taken)
    for members in groups.values():
        ages = {len(row.output) for _, row, _ in members}
        is_complete = len(members) == members[0][2].size
        together = is_complete and len(ages) == 1 and all(taken[number] for number, _, _ in members)
        for number, _, _ in members:
            kept[number] = taken[number][:1] if together else []
    return kept


def _layout(input_batch: Any) -> BatchLayout:
    computed = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
    return BatchLayout(input_batch.cu_num_logits_np.tolist(), (computed >= input_batch.prefill_len_np).tolist())


def _taken(step: DrawnStep | None, theirs: Any, layout: BatchLayout, input_batch: Any) -> list[list[int]]:
    """The tokens that each request would get if it were alone."""
    if step is None:
        return _of_vllm(theirs)
    ours = _drawn(step.tokens[:, 0], layout, input_batch)
    if not step.others:
        return ours
    others = set(step.others)
    return [
        tokens if first in others else own
        for first, own, tokens in zip(layout.bounds, ours, _of_vllm(theirs), strict=False)
    ]


def _of_vllm(theirs: Any) -> list[list[int]]:
    counts = theirs.num_sampled.tolist()
    return [tokens[:count] for tokens, count in zip(theirs.sampled_token_ids.tolist(), counts, strict=True)]


def _drawn(drawn: Tensor, layout: BatchLayout, input_batch: Any) -> list[list[int]]:
    """The accepted drafts and the token behind them; none while a prompt is being read."""
    counts = torch.tensor(layout.sizes, device=drawn.device) - 1
    drafts = drawn[:0]
    if input_batch.num_draft_tokens:
        read = input_batch.input_ids[input_batch.logits_indices]
        is_draft = torch.ones_like(read, dtype=torch.bool)
        is_draft[layout.bounds[:-1]] = False
        drafts = read[is_draft]
    verified = verify(drawn, drafts, counts, max(layout.sizes) - 1)
    tokens, kept = cast("list[list[int]]", verified.tokens.tolist()), cast("list[int]", verified.counts.tolist())
    return [row[:count] if reaches else [] for row, count, reaches in zip(tokens, kept, layout.reaches, strict=True)]


def _logprobs(step: DrawnStep | None, theirs: Any, layout: BatchLayout) -> Any:
    """vLLM's LogprobsTensors of the R positions, None if none are reported.

    The rank of a token that this engine drew is not reported: nobody of ours asks for it.
    """
    known = None if theirs is None else theirs.logprobs_tensors
    if step is None:
        return known
    tokens, values = step.reported(known, step.others)
    ranks = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
    if known is not None:
        places = list(step.others)
        ranks[places] = known.selected_token_ranks[places].to(ranks.dtype)
    has_drafts = len(layout.reaches) != tokens.shape[0]
    return touch("LogprobsTensors")(tokens, values, ranks, layout.bounds if has_drafts else None)


def _output(taken: Sequence[list[int]], logprobs: Any, layout: BatchLayout, device: torch.device) -> Any:
    width = max(layout.sizes)
    void = [
        size - len(tokens) if reaches else 0
        for size, tokens, reaches in zip(layout.sizes, taken, layout.reaches, strict=True)
    ]
    return touch("SamplerOutputV2")(
        sampled_token_ids=torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in taken], device=device),
        logprobs_tensors=logprobs,
        num_nans=None,
        num_sampled=torch.tensor([len(tokens) for tokens in taken], dtype=torch.int32, device=device),
        num_rejected=torch.tensor(void, dtype=torch.int32, device=device),
    )
