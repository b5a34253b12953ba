"""A router that says, from what a small model knows, where a large one must write the token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from motet.experts.schema import MAX_BLOCKS, MAX_TOP, MAX_WIDTH, HeadSpec
from motet.models.heads import RouterHead
from motet.training.batch import Batch, StepData
from motet.training.objectives.logprobs import weighted_mean
from motet.training.objectives.objective import Calibration, Loss, ObjectiveSetting, Paths, RecordKind, Share
from motet.training.policy import HiddenPolicy, Policies

UNKNOWN = 0.5  # the threshold where no token asks for one


class Router(ObjectiveSetting):
    """Binary cross-entropy of "the token that the model would choose must be another", by a router on a frozen model.

    Fu et al., "R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing", 2025. The
    head is a feed-forward network on the model's last hidden state, the probabilities of its `top` most likely tokens
    and the embedding of the first; the paper's has 6 `blocks` of `width` 1024 and reads 100 tokens. The head alone is
    trained. Texts are best the assistant's own answers, as in the paper.

    `label` different marks every target at which model and assistant, a member, have other most likely tokens. Of
    those `divergent` keeps the ones that lead elsewhere: the assistant writes on, greedily, up to `horizon` tokens
    behind either token, and the longest common subsequence of both texts, the two tokens included, is shorter than
    `agreement` times the longer of them. (The paper asks a model of 72B parameters whether the two differ in meaning.)
    Labels are computed once, before training.

    The head's threshold is then the largest that sends a share `recall` of the marked tokens to the assistant, or,
    where `usage` is given, the smallest that sends it no more than this share of all tokens; by `data.validation`, or
    the training data without. `positive_weight` is how much a marked token counts against another one: above 1
    the odds that it tells are too high by that factor, and its threshold with them. The strategy `routed` serves it.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}
    member_fields: ClassVar[tuple[str, ...]] = ("assistant",)
    one_model: ClassVar[bool] = True

    type: Literal["router"] = "router"
    assistant: str
    label: Literal["different", "divergent"] = "different"
    horizon: Annotated[PositiveInt, Field(le=1024)] = 16
    agreement: Share = 0.75
    top: Annotated[PositiveInt, Field(le=MAX_TOP)] = 100
    width: Annotated[PositiveInt, Field(le=MAX_WIDTH)] = 256
    blocks: Annotated[PositiveInt, Field(le=MAX_BLOCKS)] = 2
    positive_weight: PositiveFloat = 1.0
    recall: Share = 0.95
    usage: Share | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.usage is not None and "recall" in self.model_fields_set:
            raise ValueError("recall and usage exclude each other: each says where the threshold lies")
        return self

    @model_validator(mode="after")
    def _paths_are_walked(self) -> Self:
        unread = [name for name in ("horizon", "agreement") if name in self.model_fields_set]
        if self.label == "different" and unread:
            raise ValueError(f"{', '.join(unread)}: read where label is divergent alone")
        return self

    @property
    def teacher(self) -> str:
        return self.assistant

    @property
    def teacher_tokens(self) -> int:
        return 1

    @property
    def paths(self) -> Paths | None:
        return Paths(self.horizon, self.agreement) if self.label == "divergent" else None

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec(kind="router", top=self.top, width=self.width, blocks=self.blocks, threshold=UNKNOWN)

    def head(self, hidden_size: int) -> nn.Module:
        return RouterHead(hidden_size, self.top, self.width, self.blocks)

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        score, needed = self.scores(policies, batch)
        losses = F.binary_cross_entropy_with_logits(
            score, needed, reduction="none", pos_weight=score.new_tensor(self.positive_weight)
        )
        right = ((score.detach() > 0) == (needed > 0)).to(score.dtype)
        parts = {
            "needed": weighted_mean(needed, batch.weights),
            "share": weighted_mean(score.detach().sigmoid(), batch.weights),
            "accuracy": weighted_mean(right, batch.weights),
        }
        return Loss(weighted_mean(losses, batch.weights), parts, weight=batch.weights.sum())

    def scores(self, policies: Policies, batch: Batch) -> tuple[Tensor, Tensor]:
        """The router before its sigmoid, and its label (0 or 1), at the targets' positions; both (N,)."""
        assert policies.head is not None, "a router has a head"
        assert policies.teacher is not None, "the assistant says which token it should be"
        seen = cast("HiddenPolicy", policies.trained).seen(batch)
        score: Tensor = policies.head(seen)
        return score, (policies.teacher(batch).ids[:, 0] != seen.logits.argmax(-1)).to(score.dtype)

    def calibrated(self, policies: Policies, batches: Iterable[Batch]) -> Calibration:
        """The threshold by these batches, and what it does there."""
        parts = [(*self.scores(policies, batch), batch.weights) for batch in batches]
        score, needed, weights = (torch.cat(column).double().cpu() for column in zip(*parts, strict=True))
        share = score.sigmoid()
        if self.usage is None:
            threshold = threshold_of(share[needed > 0], weights[needed > 0], self.recall)
        else:
            threshold = 1 - threshold_of(1 - share, weights, 1 - self.usage)
        routed = (share > threshold).to(share.dtype)
        measures = {
            "tokens that are marked": weighted_mean(needed, weights),
            "tokens of the assistant": weighted_mean(routed, weights),
            "marked tokens of the assistant (recall)": weighted_mean(routed, weights * needed),
            "assistant's tokens that are marked (precision)": weighted_mean(needed, weights * routed),
        }
        spec = self.head_spec.model_copy(update={"threshold": threshold})
        return Calibration(spec, {name: round(value.item(), 6) for name, value in measures.items()})


def threshold_of(values: Tensor, weights: Tensor, level: float) -> float:
    """The largest t, up to rounding, such that values above t weigh `level` of all or more. It lies midway between two
    values, so that other rounding moves none across it; 0 where all must be above, 1 where none need be, `UNKNOWN`
    where there are no values.

    Args:
        values: (n,) float64 in [0, 1].
        weights: (n,) ≥ 0.
    """
    if not bool(weights.sum() > 0):
        return UNKNOWN
    if level == 0:
        return 1.0
    ordered, places = values.sort(descending=True)
    reached = weights[places].cumsum(0) >= level * weights.sum() * (1 - 1e-12)
    least = ordered[int(reached.to(torch.int64).argmax())]
    below = values[values < least]
    return float((least + below.max()) / 2) if len(below) else 0.0
