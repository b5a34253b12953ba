"""The router's loss and threshold, by hand and in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from motet.experts.schema import HeadSpec
from motet.models.heads import RouterHead, Seen
from motet.training.batch import Batch
from motet.training.objectives.router import UNKNOWN, Router, threshold_of
from motet.training.policies.teacher import top_tokens
from motet.training.policy import Policies, TopTokens
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, random_logits

HIDDEN, VOCAB = 4, 5
BATCH = make_batch([[Document([1, 0, 2, 3], 1, [1.0, 3.0, 2.0])]])
STATES, EMBEDDINGS = random_logits(3, HIDDEN, 0).detach(), random_logits(VOCAB, HIDDEN, 1).detach()
LOGITS = torch.tensor([[0.0, 2, 1, 0, 0], [3, 0, 0, 1, 0], [0, 0, 0, 1, 5]], dtype=torch.float64)
CHOICES = [1, 3, 4]  # the assistant's: another one at the second target


class Model(Tabled):
    def seen(self, batch: Batch) -> Seen:
        return Seen(STATES, self(batch), lambda ids: EMBEDDINGS[ids])


class Chosen:
    """A teacher that is sure of one token at every target."""

    def __call__(self, batch: Batch) -> TopTokens:
        return top_tokens(9.0 * torch.eye(VOCAB, dtype=torch.float64)[CHOICES], 1)


def policies_of(objective: Router, scores: Tensor | None = None) -> Policies:
    head = objective.head(HIDDEN).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in head.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return Policies(Model((BATCH, LOGITS)), teacher=Chosen(), head=head)


def test_it_learns_where_the_choices_differ() -> None:
    objective = Router(assistant="large", top=3, width=6, positive_weight=2.0)
    policies = policies_of(objective)
    assert policies.head is not None
    p = policies.head(Seen(STATES, LOGITS, lambda ids: EMBEDDINGS[ids])).sigmoid()
    expected = -(1 * (1 - p[0]).log() + 3 * 2 * p[1].log() + 2 * (1 - p[2]).log()) / 6
    loss = objective.loss(policies, {"train": BATCH})
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts["needed"].item() == pytest.approx(3 / 6)
    assert loss.parts["share"].item() == pytest.approx(((p[0] + 3 * p[1] + 2 * p[2]) / 6).item())
    assert loss.weight == 6
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in policies.head.parameters())


def test_a_router_begins_neutral_and_alike_and_is_blind_to_constants() -> None:
    one, other = (RouterHead(HIDDEN, 3, 6, 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    seen = Seen(STATES.float(), LOGITS, lambda ids: EMBEDDINGS[ids])
    assert one(seen).tolist() == [0.0] * 3
    policies = policies_of(Router(assistant="large", top=9, width=6))
    assert policies.head is not None
    raised = Seen(STATES, LOGITS + torch.tensor([[3.0], [-7.0], [100.0]]), seen.embed)
    torch.testing.assert_close(policies.head(raised), policies.head(Seen(STATES, LOGITS, seen.embed)))


@pytest.mark.parametrize(
    ("level", "threshold"),
    [(1.0, 0.25), (0.8, 0.25), (0.7, 0.5), (0.5, 0.5), (0.4, 0.75), (0.01, 0.75), (0.0, 1.0)],
)
def test_the_threshold_is_the_largest_that_suffices(level: float, threshold: float) -> None:
    """0.8 weighs four of ten, 0.7 one more pair, 0.3 the rest; 0.2 lies below."""
    values = torch.tensor([0.3, 0.8, 0.7, 0.2], dtype=torch.float64)
    weights = torch.tensor([3.0, 4.0, 3.0, 0.0], dtype=torch.float64)
    assert threshold_of(values, weights, level) == pytest.approx(threshold)


def test_thresholds_at_the_ends() -> None:
    values = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert threshold_of(values, torch.ones(2), 0.3) == 0.0
    assert threshold_of(values, torch.zeros(2), 0.3) == UNKNOWN


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1))
@settings(deadline=None)
def test_recall_and_usage_are_kept(rows: list[tuple[float, bool]], level: float) -> None:
    share = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    needed = torch.tensor([float(label) for _, label in rows])
    found = threshold_of(share[needed > 0], torch.ones(int(needed.sum())), level)
    routed = (share > found) | (share == 0)  # a served share is never 0
    assert float((routed * needed).sum()) >= level * float(needed.sum()) - 1e-9


def calibrated(**fields: Any) -> tuple[HeadSpec, dict[str, float], Tensor]:
    objective = Router(assistant="large", top=3, width=6, **fields)
    policies = policies_of(objective)
    with torch.no_grad():
        score, _ = objective.scores(policies, BATCH)
        made = objective.calibrated(policies, [BATCH])
    assert made.head is not None
    return made.head, dict(made.measures), score.sigmoid()


def test_a_router_is_calibrated_by_recall_or_by_usage() -> None:
    spec, measures, share = calibrated()
    assert spec.threshold is not None
    assert spec.threshold < float(share[1])
    assert measures["marked tokens of the assistant (recall)"] == 1.0
    assert measures["tokens that are marked"] == 0.5
    routed = (share > spec.threshold).double()
    weights = BATCH.weights.double()
    assert measures["tokens of the assistant"] == pytest.approx(float((routed * weights).sum() / 6), abs=1e-6)
    for usage in (0.0, 0.2, 0.5, 0.9, 1.0):
        spec, measures, _ = calibrated(usage=usage)
        assert measures["tokens of the assistant"] <= usage
        assert spec.threshold is not None
        if usage in (0.0, 1.0):
            assert spec.threshold == 1 - usage
            assert measures["tokens of the assistant"] == usage


def test_what_is_read_is_what_is_written() -> None:
    with pytest.raises(ValidationError, match="recall and usage exclude each other"):
        Router(assistant="large", recall=0.9, usage=0.2)
    with pytest.raises(ValidationError, match="horizon: read where label is divergent alone"):
        Router(assistant="large", horizon=4)
    with pytest.raises(ValidationError, match="top"):
        Router(assistant="large", top=0)


def test_a_recipe_says_what_is_served() -> None:
    spec = Router(assistant="large", top=7, width=12, blocks=1).head_spec
    head = spec.made(HIDDEN)
    assert isinstance(head, RouterHead)
    assert (head.top, head.threshold, len(head.blocks)) == (7, UNKNOWN, 1)
    assert head.enter.weight.shape == (12, 2 * HIDDEN + 7)
