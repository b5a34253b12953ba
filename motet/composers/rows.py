"""Plans of a batch → the rows that the kernels read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from motet.composers.plan import Plan, RuleVector, TokenSet
from motet.composers.rules import (
    AdaptersRule,
    AdaptiveRule,
    BudgetRule,
    CascadeRule,
    DiscriminatorRule,
    DivergenceRule,
    DynamicRule,
    EscalationRule,
    LinearRule,
    MixtureRule,
    ReluRule,
    RoutedRule,
    Rule,
    SparseRule,
)
from motet.kernels.layout import (
    ComposeRows,
    Kind,
    MaskRows,
    Measure,
    RuleRows,
    SetRows,
    SparseEdits,
    TermRows,
    edits_or_none,
    rows_index,
)
from motet.kernels.reference import compose

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
    rules: dict[tuple[Kind, int, bool], list[int]] = {}
    for row, plan in enumerate(plans):
        kind = rule_kind(plan.rule)
        if kind is not Kind.LINEAR:
            tempered = any(stream.temperature != 1.0 for stream in plan.streams)
            rules.setdefault((kind, len(_rule_parts(plan)), tempered), []).append(row)
        for k, stream in enumerate(plan.streams):
            if kind is Kind.LINEAR and stream.weight != 0.0:
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
        rules=tuple(_rule(kind, plans, stream_rows, rows, like) for (kind, *_), rows in rules.items()),
    )


def rule_kind(rule: Rule) -> Kind:
    """The kernels' number of a rule. Raises ValueError: the rule is of whole answers."""
    if isinstance(rule, EscalationRule):
        raise ValueError("a cascade per request composes no tokens: it is asked for one side at a time")
    return _KINDS[type(rule)]


_KINDS: dict[type[Rule], Kind] = {
    LinearRule: Kind.LINEAR,
    AdaptiveRule: Kind.LINEAR,  # once a head has said its number, see `timeline.adapted`
    AdaptersRule: Kind.LINEAR,
    ReluRule: Kind.RELU,
    MixtureRule: Kind.MIXTURE,
    DiscriminatorRule: Kind.DISCRIMINATOR,
    DynamicRule: Kind.DYNAMIC,
    BudgetRule: Kind.BUDGET,
    RoutedRule: Kind.ROUTED,
    DivergenceRule: Kind.DIVERGENCE,
    CascadeRule: Kind.CASCADE,
    SparseRule: Kind.SPARSE,
}


def _rule(
    kind: Kind, plans: Sequence[Plan], stream_rows: Sequence[Sequence[int]], rows: Sequence[int], like: Tensor
) -> RuleRows:
    """The rows of one kind with the same number of parts."""
    parts = {row: _rule_parts(plans[row]) for row in rows}
    temperatures = [[plans[row].streams[k].temperature for k, _ in parts[row]] for row in rows]
    return RuleRows(
        kind=kind,
        rows=rows_index(rows, like.device),
        sources=tuple(
            rows_index([stream_rows[row][parts[row][i][0]] for row in rows], like.device)
            for i in range(len(parts[rows[0]]))
        ),
        weight=like.new_tensor([[weight for _, weight in parts[row]] for row in rows]),
        param=like.new_tensor([_params(plans[row].rule) for row in rows]),
        temperature=like.new_tensor(temperatures) if any(t != 1.0 for each in temperatures for t in each) else None,
    )


def _rule_parts(plan: Plan) -> list[tuple[int, float]]:
    """(stream, weight) of what a rule reads. A base whose own weight is part of what a budget caps is read twice: as
    the reference and, with what its weight exceeds 1 by, as a part of the shift."""
    parts = [(k, stream.weight) for k, stream in enumerate(plan.streams)]
    if not isinstance(plan.rule, BudgetRule) or parts[0][1] == 1.0:
        return parts
    return [(0, 1.0), (0, parts[0][1] - 1.0), *parts[1:]]


def _params(rule: Rule) -> tuple[float, float, float]:
    """In the order that `RuleRows.param` names."""
    match rule:
        case ReluRule():
            return rule.alpha, 0.0, 0.0
        case DiscriminatorRule():
            return rule.omega, rule.mass, rule.posterior
        case DynamicRule():
            return rule.alpha_max, float(rule.symmetric), 0.0
        case BudgetRule():
            return rule.alpha_max, rule.epsilon, 0.0
        case RoutedRule():
            return -1.0 if rule.threshold is None else rule.threshold, 0.0, 0.0
        case DivergenceRule():
            return float(rule.count), 0.0, 0.0
        case CascadeRule():
            return float(Measure[rule.measure.upper()]), rule.threshold, rule.share
        case SparseRule():
            return rule.agreement, 0.0, 0.0
        case LinearRule() | AdaptersRule() | AdaptiveRule() | MixtureRule() | EscalationRule():
            return 0.0, 0.0, 0.0


def _kind(token_set: TokenSet | None) -> tuple[str, float] | None:
    return None if token_set is None else (token_set.kind, token_set.value)


def _term(
    plans: Sequence[Plan], stream_rows: Sequence[Sequence[int]], members: Sequence[tuple[int, int]], like: Tensor
) -> TermRows:
    """The term of (row, stream) pairs whose streams agree on the gate and on having a temperature."""
    streams = [plans[row].streams[k] for row, k in members]
    gates = [(row, stream.inside) for (row, _), stream in zip(members, streams, strict=True) if stream.inside]
    has_temperature = any(stream.temperature != 1.0 for stream in streams)
    return TermRows(
        rows=rows_index([row for row, _ in members], like.device),
        source=rows_index([stream_rows[row][k] for row, k in members], like.device),
        weight=like.new_tensor([stream.weight for stream in streams]),
        temperature=like.new_tensor([stream.temperature for stream in streams]) if has_temperature else None,
        inside=_set_rows(stream_rows, gates, like) if gates else None,
    )


def _set_rows(stream_rows: Sequence[Sequence[int]], members: Sequence[tuple[int, TokenSet]], like: Tensor) -> SetRows:
    first = members[0][1]
    sources = [stream_rows[row][token_set.stream] for row, token_set in members]
    return SetRows(first.kind, first.value, rows_index(sources, like.device))


def rule_places(row: int, rules: RuleVector, generated: Sequence[int], eos_token_ids: Sequence[int]) -> list[Place]:
    """What a rule vector adds to one row, given the tokens generated so far."""
    places = [(row, token, offset) for token, offset in rules.offsets]
    if rules.eos_ramp_weight and rules.eos_ramp_tokens:
        ramp = rules.eos_ramp_weight * min(1.0, len(generated) / rules.eos_ramp_tokens)
        places += [(row, token, ramp) for token in eos_token_ids]
    if rules.repetition:
        places += [(row, token, -rules.repetition) for token in set(generated)]
    return places


def reference_logprobs(
    plan: Plan,
    logits: Tensor,
    *,
    generated: Sequence[Sequence[int]] | None = None,
    eos_token_ids: tuple[int, ...] = (),
    state: Tensor | None = None,
) -> Tensor:
    """Composed log-probs (R, V) of one plan over R rows by the oracle `kernels.reference`, with gradients: for tests
    and for training through a composition. Engines compose by the faster kernels that `kernels.dispatch` chooses.

    Args:
        logits: (K, R, V) raw, of K streams.
        generated: (R) the tokens that each row has generated so far; read by the plan's rule vector alone.
        eos_token_ids: what the rule vector's ramp raises.
        state: (R, 3), what the rule has gathered before (see `cores.rule_scores`).
    """
    num_streams, num_rows, vocab = logits.shape
    logprobs = logits.log_softmax(-1).reshape(num_streams * num_rows, vocab)
    stream_rows = [[k * num_rows + r for k in range(num_streams)] for r in range(num_rows)]
    rows = compose_rows([plan] * num_rows, stream_rows, logprobs)
    edited = _rules(plan, generated or [()] * num_rows, eos_token_ids, logprobs)
    return compose(logprobs, rows, edited, state)


def _rules(
    plan: Plan, generated: Sequence[Sequence[int]], eos_token_ids: Sequence[int], like: Tensor
) -> SparseEdits | None:
    if plan.rules is None:
        return None
    places = [p for row, past in enumerate(generated) for p in rule_places(row, plan.rules, past, eos_token_ids)]
    return edits_or_none(places, like)
