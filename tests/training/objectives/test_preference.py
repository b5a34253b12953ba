"""Preference objectives by hand, and against TRL's trainers on the same log-probs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from motet.training.batch import Batch
from motet.training.objectives.kahneman_tversky import KahnemanTversky
from motet.training.objectives.objective import Objective
from motet.training.objectives.pieces import mismatched
from motet.training.objectives.preference import Preference, SelfPlay, sigmoid_loss
from motet.training.policy import Policies
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, Whole, random_logits

VOCAB = 9
CHOSEN = make_batch([[Document([1, 2, 3, 4], 2)], [Document([5, 6, 7, 8, 1], 1)], [Document([3, 1], 1)]])
REJECTED = make_batch([[Document([1, 2, 5], 2)], [Document([5, 1, 1], 1)], [Document([3, 2, 2, 2], 1)]])
PAIRS = {"train.chosen": CHOSEN, "train.rejected": REJECTED}


class Hashed(Whole):
    """Logits that depend on the batch's own tokens, the same for equal batches: (N, V) float64."""

    def __init__(self, seed: int) -> None:
        self.table = random_logits(VOCAB * VOCAB, VOCAB, seed)

    def __call__(self, batch: Batch) -> Tensor:
        before = batch.input_ids[batch.counted]
        return self.table[before * VOCAB + batch.targets]


def log_probs(policy: Hashed, batch: Batch) -> Tensor:
    """(B, T − 1) per-token log-probs as TRL's fused head gives them: 0 where nothing counts."""
    logits = policy(batch).log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    table = torch.zeros(batch.counted.shape, dtype=torch.float64).masked_scatter(batch.counted, logits)
    return table[:, :-1]


def outputs(values: Tensor) -> SimpleNamespace:
    """What TRL reads of a model's outputs; the metrics' parts are of no matter here."""
    zeros = torch.zeros_like(values)
    return SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trainer(**settings: Any) -> SimpleNamespace:
    def same(value: Tensor) -> Tensor:
        return value

    return SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict[str, list[float]](list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def private(trainer_class: type, name: str) -> Callable[..., Any]:
    """A method of a trainer, to be called with a stand-in for the trainer."""
    return getattr(trainer_class, name)


def masked(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and the completion mask (B, T): which tokens are answers."""
    mask = torch.zeros_like(batch.input_ids)
    mask[:, 1:] = batch.counted[:, :-1]
    return batch.input_ids, mask


def stacked(one: Tensor, other: Tensor) -> Tensor:
    width = max(one.shape[1], other.shape[1])
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (one, other)])


@pytest.mark.parametrize(("form", "theirs"), [("sigmoid", "sigmoid"), ("ipo", "ipo")])
def test_dpo_equals_trl(form: Literal["sigmoid", "ipo"], theirs: str) -> None:
    policies = Policies(Hashed(0), Hashed(1))
    trained, reference = Hashed(0), Hashed(1)
    ids, masks = (stacked(one, other) for one, other in zip(masked(CHOSEN), masked(REJECTED), strict=True))
    inputs = {
        "input_ids": ids,
        "completion_mask": masks,
        "attention_mask": torch.ones_like(ids),
        "ref_chosen_logps": log_probs(reference, CHOSEN).sum(1),
        "ref_rejected_logps": log_probs(reference, REJECTED).sum(1),
    }
    fake = trainer(
        beta=0.3, ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[theirs], loss_weights=[1.0],
        use_weighting=False,
    )  # fmt: skip
    values = stacked(log_probs(trained, CHOSEN), log_probs(trained, REJECTED))

    def model(**_: Any) -> SimpleNamespace:
        return outputs(values)

    expected = private(DPOTrainer, "_compute_loss")(fake, model, inputs, False)
    actual = Preference(form=form, beta=0.3).loss(policies, PAIRS)
    torch.testing.assert_close(actual.total, expected)
    theirs_accuracy = fake._metrics["train"]["rewards/accuracies"][-1]
    assert actual.parts["accuracy"].item() == pytest.approx(theirs_accuracy)
    torch.testing.assert_close(actual.parts["margin"].item(), fake._metrics["train"]["rewards/margins"][-1])


LABELLED = make_batch(
    [[Document([1, 2, 3, 4], 2)], [Document([5, 6, 7, 8, 1], 3)], [Document([3, 1], 1)], [Document([2, 7, 1], 1)]],
    labels=[1, 0, 1, 0],
)


@pytest.mark.parametrize("seed", range(4))  # the baseline is 0 for some and positive for others
def test_kto_equals_trl(seed: int) -> None:
    trained, reference = Hashed(seed), Hashed(10 + seed)
    crossed = mismatched(LABELLED)
    (ids, mask), (kl_ids, kl_mask) = masked(LABELLED), masked(crossed)
    inputs = {
        "input_ids": ids,
        "completion_mask": mask,
        "attention_mask": torch.ones_like(ids),
        "KL_input_ids": kl_ids,
        "KL_attention_mask": torch.ones_like(kl_ids),
        "KL_completion_mask": kl_mask,
        "label": LABELLED.labels,
        "ref_logps": log_probs(reference, LABELLED).sum(1),
        "ref_KL_logps": log_probs(reference, crossed).sum(1),
    }
    fake = trainer(beta=0.2, calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.7)
    fake._compute_kl_logps = partial(private(KTOTrainer, "_compute_kl_logps"), fake)

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return outputs(log_probs(trained, crossed if input_ids is kl_ids else LABELLED))

    expected = private(KTOTrainer, "_compute_loss")(fake, model, inputs, False)
    objective = KahnemanTversky(beta=0.2, desirable_weight=1.3, undesirable_weight=0.7)
    actual = objective.loss(Policies(trained, reference), {"train": LABELLED})
    torch.testing.assert_close(actual.total, expected)
    torch.testing.assert_close(actual.parts["kl"].item(), fake._metrics["train"]["kl"][-1])


def test_both_signs_of_the_baseline_are_tried_above() -> None:
    kls: list[float] = []
    for seed in range(4):
        loss = KahnemanTversky().loss(Policies(Hashed(seed), Hashed(10 + seed)), {"train": LABELLED})
        kls.append(loss.parts["kl"].item())
    assert min(kls) == 0.0 < max(kls)


@given(st.floats(0.01, 5), st.floats(0, 0.49))
@settings(deadline=None, max_examples=20)
def test_at_the_reference_the_loss_is_ln_2(beta: float, smoothing: float) -> None:
    policies = Policies(Hashed(0), Hashed(0))
    for objective in (Preference(beta=beta, label_smoothing=smoothing), SelfPlay(beta=beta)):
        loss = objective.loss(policies, PAIRS)
        assert loss.total.item() == pytest.approx(math.log(2), abs=1e-12)
        assert loss.parts["margin"].item() == 0.0


def test_ipo_at_the_reference() -> None:
    policies = Policies(Hashed(0), Hashed(0))
    assert Preference(form="ipo", beta=0.2).loss(policies, PAIRS).total.item() == pytest.approx(2.5**2, abs=1e-12)


def test_label_smoothing_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    expected = 0.9 * math.log1p(math.exp(-1.5)) + 0.1 * math.log1p(math.exp(1.5))
    assert sigmoid_loss(chosen, rejected, 0.5, 0.1).item() == pytest.approx(expected, abs=1e-12)


def test_spin_is_dpo_on_the_models_own_answers() -> None:
    policies = Policies(Hashed(0), Hashed(1))
    spin, dpo = SelfPlay(beta=0.4).loss(policies, PAIRS), Preference(beta=0.4).loss(policies, PAIRS)
    assert torch.equal(spin.total, dpo.total)


def test_the_constraint_holds_undesirable_answers() -> None:
    policies = Policies(Hashed(0), Hashed(1))
    plain = KahnemanTversky().loss(policies, {"train": LABELLED})
    sums = [
        (log_probs(Hashed(0), LABELLED) - log_probs(Hashed(1), LABELLED)).sum(1)[document].item() for document in (1, 3)
    ]
    margin = max(sums[0], sums[1], 0.0)
    excess = sum(max(0.0, -margin - value) for value in sums) / 2
    held = KahnemanTversky(negative_margin=margin, negative_weight=3.0).loss(policies, {"train": LABELLED})
    assert excess > 0
    assert held.total.item() == pytest.approx(plain.total.item() + 3 * excess, abs=1e-12)


@pytest.mark.parametrize("objective", [Preference(), Preference(form="ipo"), SelfPlay()], ids=repr)
def test_gradients_of_pairs_are_exact(objective: Objective) -> None:
    reference = Tabled((CHOSEN, random_logits(7, VOCAB, 1)), (REJECTED, random_logits(6, VOCAB, 2)))

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective.loss(Policies(Tabled((CHOSEN, chosen), (REJECTED, rejected)), reference), PAIRS).total

    assert torch.autograd.gradcheck(loss, (random_logits(7, VOCAB, 3), random_logits(6, VOCAB, 4)))


def test_the_baseline_of_kto_carries_no_gradient() -> None:
    trained = Hashed(0)
    loss = KahnemanTversky().loss(Policies(trained, Hashed(1)), {"train": LABELLED})
    assert not loss.parts["kl"].requires_grad
    (gradient,) = torch.autograd.grad(loss.total, trained.table)
    read = torch.zeros(VOCAB * VOCAB, dtype=torch.bool)
    read[LABELLED.input_ids[LABELLED.counted] * VOCAB + LABELLED.targets] = True
    assert not gradient[~read].any()
    assert gradient[read].any()
