"""A composition as a policy: one stream is trained, the others are frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from motet.composers.plan import Discriminator as DiscriminatorRule
from motet.composers.plan import Plan, Prompt, Rules, Stream
from motet.composers.rows import compose_logits
from motet.training.batch import Batch, PromptForm
from motet.training.policy import Policy
from motet.training.recipe import TRAINED

MASKED = -30.0  # log-prob of a token outside of the masks: finite, and e⁻³⁰ a token adds nothing to a sum over V


class ComposedPolicy:
    """Composed log-probs (N, V) of a plan, `compose_logits` over the streams' logits.

    Gradients go to the trained stream alone; which tokens a mask or gate keeps is a constant. A target outside of
    the masks gets the constant log-prob −30: no gradient comes from it, and it cancels against a reference.
    `masked_share` (0 to 1) is the share of such targets in the last batch.

    Args:
        plan: of `through.through_plan`.
        policies: by the streams' model names; all but `trained` are called without gradients.
        eos_token_ids: what a rule vector's end-of-sequence ramp raises.
    """

    def __init__(self, plan: Plan, policies: Mapping[str, Policy], eos_token_ids: tuple[int, ...] = ()) -> None:
        self.plan = plan
        self.policies = policies
        self.eos_token_ids = eos_token_ids
        self.masked_share: Tensor = torch.zeros(())

    def __call__(self, batch: Batch) -> Tensor:
        logits = self._stream_logits(batch)
        composed = compose_logits(
            self.plan,
            logits,
            generated=_answers_so_far(batch) if _repeats(self.plan.rules) else None,
            eos_token_ids=self.eos_token_ids,
            state=_discriminator_state(logits, batch) if isinstance(self.plan.rule, DiscriminatorRule) else None,
        )
        target = composed.detach().gather(-1, batch.targets[:, None])
        self.masked_share = (target == -math.inf).float().mean()
        return composed.masked_fill(composed == -math.inf, MASKED)

    def _stream_logits(self, batch: Batch) -> Tensor:
        """(K, N, V) over the width that all streams share; every distinct (model, view) is computed once."""
        heard: dict[tuple[str, PromptForm | None], Tensor] = {}
        for stream in self.plan.streams:
            key = stream.model, prompt_form(stream.prompt)
            if key not in heard:
                heard[key] = self._logits(stream, view_of(batch, key[1]))
        width = min(logits.shape[-1] for logits in heard.values())
        streams = [heard[stream.model, prompt_form(stream.prompt)][:, :width] for stream in self.plan.streams]
        return torch.stack([logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in streams])

    def _logits(self, stream: Stream, batch: Batch) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and stream.model == TRAINED):
            return self.policies[stream.model](batch)


def prompt_form(prompt: Prompt | None) -> PromptForm | None:
    """The view of a batch that a stream's prompt stands for; None is the batch itself.

    Raises:
        ValueError: the prompt is no form of the records' own prompts.
    """
    if prompt is None:
        return None
    if prompt.messages is not None or prompt.last_tokens is not None or prompt.text:
        raise ValueError("streams read the records' own prompts: only `template` and an empty `prompt` are possible")
    return "none" if prompt.text == "" else prompt.template


def view_of(batch: Batch, form: PromptForm | None) -> Batch:
    """The batch in another prompt form.

    Raises:
        KeyError: the batch was made without this view.
    """
    return batch if form is None else batch.views[form]


def _repeats(rules: Rules | None) -> bool:
    return rules is not None and bool(rules.repetition or rules.eos_ramp_weight)


def _answers_so_far(batch: Batch) -> Sequence[Sequence[int]]:
    """(N) the targets of the same document before each target."""
    past: list[list[int]] = [[] for _ in range(batch.num_documents)]
    so_far: list[list[int]] = []
    pairs = cast("list[tuple[int, int]]", torch.stack((batch.targets, batch.owners), -1).tolist())
    for target, owner in pairs:
        so_far.append(list(past[owner]))
        past[owner].append(target)
    return so_far


def _discriminator_state(logits: Tensor, batch: Batch) -> Tensor:
    """(N, 3): Σ log p_1 and Σ log p_2 of the document's targets before each one, and their number."""
    chosen = logits[1:3].log_softmax(-1).gather(-1, batch.targets.expand(2, -1)[..., None]).squeeze(-1)  # (2, N)
    ones = torch.ones_like(chosen[:1])
    values = torch.cat((chosen, ones)).T
    same = batch.owners[:, None] == batch.owners[None, :]
    before = torch.ones_like(same).tril(-1) & same
    return before.to(values.dtype) @ values
