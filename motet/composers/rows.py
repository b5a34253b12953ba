"""Plans of a batch → the rows that the kernels read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from motet.composers.plan import Plan, Rules, TokenSet
from motet.kernels.reference import (
    ComposeRows,
    MaskRows,
    SetRows,
    SparseEdits,
    TermRows,
    compose,
    edits,
    rows_index,
)

TermKey = tuple[int, bool, tuple[str, float] | None]  # stream number, has a temperature, gate
MaskKey = tuple[int, tuple[str, float] | None]  # mask number, its kind and value
Place = tuple[int, int, float]  # (row, token, value)


def compose_rows(plans: Sequence[Plan], stream_rows: Sequence[Sequence[int]], like: Tensor) -> ComposeRows:
    """The composition of R rows, grouped so that each term and mask is one tensor operation.

    Args:
        plans: (R) the plan of each row.
        stream_rows: (R, K_r) row of each stream in the step's log-probs.
        like: device and dtype of the weights.
    """
    terms: dict[TermKey, list[tuple[int, int]]] = {}
    masks: dict[MaskKey, list[tuple[int, TokenSet]]] = {}
    for row, plan in enumerate(plans):
        for k, stream in enumerate(plan.streams):
            if stream.weight != 0.0:
                terms.setdefault((k, stream.temperature != 1.0, _kind(stream.inside)), []).append((row, k))
        for j, mask in enumerate(plan.masks):
            masks.setdefault((j, _kind(mask)), []).append((row, mask))
    # by stream number: a row's sum is then the same whatever else is in the batch
    ordered = sorted(terms.items(), key=lambda item: item[0][0])
    return ComposeRows(
        num_rows=len(plans),
        base=rows_index([rows[0] for rows in stream_rows], like.device),
        terms=tuple(_term(plans, stream_rows, members, like) for _, members in ordered),
        masks=tuple(
            MaskRows(rows_index([row for row, _ in members], like.device), _set_rows(stream_rows, members, like))
            for members in masks.values()
        ),
    )


def _kind(token_set: TokenSet | None) -> tuple[str, float] | None:
    return None if token_set is None else (token_set.kind, token_set.value)


def _term(
    plans: Sequence[Plan], stream_rows: Sequence[Sequence[int]], members: Sequence[tuple[int, int]], like: Tensor
) -> TermRows:
    """The term of (row, stream) pairs whose streams agree on the gate and on having a temperature."""
    streams = [plans[row].streams[k] for row, k in members]
    gates = [(row, stream.inside) for (row, _), stream in zip(members, streams, strict=True) if stream.inside]
    heated = any(stream.temperature != 1.0 for stream in streams)
    return TermRows(
        rows=rows_index([row for row, _ in members], like.device),
        source=rows_index([stream_rows[row][k] for row, k in members], like.device),
        weight=like.new_tensor([stream.weight for stream in streams]),
        temperature=like.new_tensor([stream.temperature for stream in streams]) if heated else None,
        inside=_set_rows(stream_rows, gates, like) if gates else None,
    )


def _set_rows(stream_rows: Sequence[Sequence[int]], members: Sequence[tuple[int, TokenSet]], like: Tensor) -> SetRows:
    first = members[0][1]
    sources = [stream_rows[row][token_set.stream] for row, token_set in members]
    return SetRows(first.kind, first.value, rows_index(sources, like.device))


def rule_places(row: int, rules: Rules, generated: Sequence[int], eos_token_ids: Sequence[int]) -> list[Place]:
    """What a rule vector adds to one row, given the tokens generated so far."""
    places = [(row, token, offset) for token, offset in rules.offsets]
    if rules.eos_ramp_weight and rules.eos_ramp_tokens:
        ramp = rules.eos_ramp_weight * min(1.0, len(generated) / rules.eos_ramp_tokens)
        places += [(row, token, ramp) for token in eos_token_ids]
    if rules.repetition:
        places += [(row, token, -rules.repetition) for token in set(generated)]
    return places


def compose_logits(
    plan: Plan,
    logits: Tensor,
    *,
    generated: Sequence[Sequence[int]] | None = None,
    eos_token_ids: tuple[int, ...] = (),
) -> Tensor:
    """Composed log-probs (R, V) of one plan over R rows from raw logits (K, R, V): the engine's own path, for callers
    that hold all streams' logits (tests, training through the composition)."""
    num_streams, num_rows, vocab = logits.shape
    logprobs = logits.log_softmax(-1).reshape(num_streams * num_rows, vocab)
    stream_rows = [[k * num_rows + r for k in range(num_streams)] for r in range(num_rows)]
    rows = compose_rows([plan] * num_rows, stream_rows, logprobs)
    return compose(logprobs, rows, _rules(plan, generated or [()] * num_rows, eos_token_ids, logprobs))


def _rules(
    plan: Plan, generated: Sequence[Sequence[int]], eos_token_ids: Sequence[int], like: Tensor
) -> SparseEdits | None:
    if plan.rules is None:
        return None
    places = [p for row, past in enumerate(generated) for p in rule_places(row, plan.rules, past, eos_token_ids)]
    return edits(places, like) if places else None
