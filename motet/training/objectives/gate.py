"""A gate that defers to an assistant token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from motet.experts.schema import HeadSpec
from motet.models.heads import GateHead
from motet.training.batch import StepData
from motet.training.objectives.logprobs import policy_logprobs, token_logprobs, weighted_mean
from motet.training.objectives.objective import Loss, ObjectiveSetting, RecordKind
from motet.training.policy import HiddenPolicy, Policies

INITIAL_LR = 1e-2


def gate_losses(gate: Tensor, base: Tensor, assistant: Tensor) -> Tensor:
    """(N,) `−log[(1 − d)·p_base(y) + d·p_assistant(y)]`, d = σ(gate), from log-probs of the targets; all (N,)."""
    return -torch.logaddexp(F.logsigmoid(-gate) + base, F.logsigmoid(gate) + assistant)


class Gate(ObjectiveSetting):
    """The likelihood of text in which every token is written by the trained base or by the assistant, a member.

    Shen et al., "Learning to Decode Collaboratively with Multiple Language Models" (Co-LLM), 2024. The share d is the
    sigmoid of a linear head on the base's last hidden state. The head is weakly initialised: `initial_steps` steps on
    whether the assistant finds the token likelier. `train_model: false` trains the head alone. The strategy `routed`
    serves it.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "documents"}
    member_fields: ClassVar[tuple[str, ...]] = ("assistant",)
    one_model: ClassVar[bool] = True

    type: Literal["gate"] = "gate"
    assistant: str
    initial_steps: Annotated[int, Field(ge=0)] = 50
    train_model: bool = True

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec(kind="gate")

    def head(self, hidden_size: int) -> nn.Module:
        return GateHead(hidden_size)

    def initialise(self, policies: Policies, at: Callable[[int], StepData]) -> None:
        """The weak initialisation of the head."""
        if not self.initial_steps:
            return
        assert policies.head is not None
        alone = self.model_copy(update={"train_model": False})
        optimizer = torch.optim.AdamW(policies.head.parameters(), lr=INITIAL_LR)
        for step in range(self.initial_steps):
            alone.weak_loss(policies, at(step)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        gate, base, assistant = self.scores(policies, data)
        total = weighted_mean(gate_losses(gate, base, assistant), batch.weights)
        share = weighted_mean(gate.detach().sigmoid(), batch.weights)
        base_nll = weighted_mean(-base.detach(), batch.weights)
        return Loss(total, {"share": share, "base_nll": base_nll}, weight=batch.weights.sum())

    def scores(self, policies: Policies, data: StepData) -> tuple[Tensor, Tensor, Tensor]:
        """The gate before its sigmoid, and the targets' log-probs under base and assistant; all (N,)."""
        batch = data["train"]
        assert policies.head is not None, "a gate has a head"
        hidden, logits = cast("HiddenPolicy", policies.trained).hidden(batch)
        if not self.train_model:
            hidden, logits = hidden.detach(), logits.detach()
        gate: Tensor = policies.head(hidden)
        return gate, token_logprobs(logits, batch), policy_logprobs(policies.members[self.assistant], batch)

    def weak_loss(self, policies: Policies, data: StepData) -> Tensor:
        """Binary cross-entropy of the gate against "the assistant finds the token likelier"; scalar."""
        gate, base, assistant = self.scores(policies, data)
        likelier = (assistant > base).to(gate.dtype)
        losses = F.binary_cross_entropy_with_logits(gate, likelier, reduction="none")
        return weighted_mean(losses, data["train"].weights)
