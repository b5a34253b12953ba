"""A composition as a policy: one stream is trained, the others are frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from motet.composers.plan import Plan, Prompt, RuleVector, Stream
from motet.composers.rows import reference_logprobs
from motet.composers.rules import LinearRule
from motet.kernels.composed_loss import weighted_sum
from motet.training.batch import Batch, PromptForm
from motet.training.policies.frozen import without_gradients
from motet.training.policy import Policy, Scores
from motet.training.recipe import TRAINED

MASKED = -30.0  # log-prob of a token outside of the masks: finite, and e⁻³⁰ a token adds nothing to a sum over V


class ComposedPolicy:
    """Composed log-probs (N, V) of a plan from its streams' logits: `reference_logprobs`, or their `weighted_sum`.

    Gradients go to the trained stream alone; which tokens a mask or gate keeps is a constant. A target outside of
    the masks gets the constant log-prob −30: no gradient comes from it, and it cancels against a reference.

    Args:
        plan: of `through.through_plan`.
        policies: by the streams' model names; all but `trained` are called without gradients.
        eos_token_ids: what a rule vector's end-of-sequence ramp raises.
    """

    def __init__(self, plan: Plan, policies: Mapping[str, Policy], eos_token_ids: tuple[int, ...] = ()) -> None:
        self.plan = plan
        self.policies = policies
        self.eos_token_ids = eos_token_ids
        self._outside = torch.zeros(1, dtype=torch.bool)

    @property
    def masked_share(self) -> Tensor:
        """Share (0 to 1) of the last batch's targets that lie outside of the masks; scalar."""
        return self._outside.float().mean()

    def __call__(self, batch: Batch) -> Tensor:
        return self._composed(_Streams(self.plan, self._members(batch)), batch).whole()

    def scores(self, batch: Batch) -> Scores:
        """The same in blocks of rows. Of a weighted sum, the streams' logits are summed as they are: what each one's
        normalisation would add is a constant per row."""
        streams = _Streams(self.plan, self._members(batch))
        return streams.summed() if _is_sum(self.plan) else self._composed(streams, batch)

    def _members(self, batch: Batch) -> dict[StreamKey, Scores]:
        """Every distinct (model, view) once."""
        found: dict[StreamKey, Scores] = {}
        for stream in self.plan.streams:
            key = _key(stream)
            if key not in found:
                found[key] = self._scores(stream, view_of(batch, key[1]))
        return found

    def _scores(self, stream: Stream, batch: Batch) -> Scores:
        if stream.model == TRAINED:
            return self.policies[stream.model].scores(batch)
        with torch.no_grad():
            return without_gradients(self.policies[stream.model].scores(batch), torch.no_grad)

    def _composed(self, streams: _Streams, batch: Batch) -> Scores:
        past = _answers_so_far(batch) if _repeats(self.plan.rules) else None
        # blocks may be computed again in the backward pass, when another batch has been scored since
        outside = self._outside = torch.zeros(len(batch.targets), dtype=torch.bool, device=batch.targets.device)

        def logits(rows: slice, *inputs: Tensor) -> Tensor:
            composed = reference_logprobs(
                self.plan,
                torch.stack(streams.logits(rows, *inputs)),
                generated=None if past is None else past[rows],
                eos_token_ids=self.eos_token_ids,
            )
            target = composed.detach().gather(-1, batch.targets[rows, None])
            outside[rows] = target[:, 0] == -math.inf
            return composed.masked_fill(composed == -math.inf, MASKED)

        return Scores(streams.inputs, logits, streams.width, streams.trains)


StreamKey = tuple[str, PromptForm | None]


def _key(stream: Stream) -> StreamKey:
    return stream.model, prompt_form(stream.prompt)


class _Streams:
    """The scores of a plan's streams, those of equal ones held once."""

    def __init__(self, plan: Plan, members: Mapping[StreamKey, Scores]) -> None:
        self._plan = plan
        self._members = members
        self.inputs = tuple(rows for member in members.values() for rows in member.inputs)
        self.width = min(member.width for member in members.values())  # that all streams share
        self.trains = any(member.trains for member in members.values())

    def logits(self, rows: slice, *inputs: Tensor) -> list[Tensor]:
        """(n, V) of every stream, at least float32."""
        left, found = list(inputs), dict[StreamKey, Tensor]()
        for key, member in self._members.items():
            own, left = left[: len(member.inputs)], left[len(member.inputs) :]
            logits = member.logits(rows, *own)[:, : self.width]
            found[key] = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return [found[_key(stream)] for stream in self._plan.streams]

    def summed(self) -> Scores:
        def logits(rows: slice, *inputs: Tensor) -> Tensor:
            weights = [stream.weight / stream.temperature for stream in self._plan.streams]
            return weighted_sum(self.logits(rows, *inputs), weights)

        return Scores(self.inputs, logits, self.width, self.trains)


def _is_sum(plan: Plan) -> bool:
    """Whether the plan's scores are a weighted sum of logits, up to a constant per row."""
    gated = any(stream.inside is not None for stream in plan.streams)
    return isinstance(plan.rule, LinearRule) and not (gated or plan.masks or plan.rules)


def prompt_form(prompt: Prompt | None) -> PromptForm | None:
    """The view of a batch that a stream's prompt stands for; None is the batch itself.

    Raises:
        ValueError: the prompt is no form of the records' own prompts.
    """
    if prompt is None:
        return None
    changed = prompt.messages is not None or prompt.last_tokens is not None or prompt.swaps or prompt.text
    if changed or prompt.pondered is not None:
        raise ValueError("streams read the records' own prompts: only `template` and an empty `prompt` are possible")
    return "none" if prompt.text == "" else prompt.template


def view_of(batch: Batch, form: PromptForm | None) -> Batch:
    """The batch in another prompt form.

    Raises:
        KeyError: the batch was made without this view.
    """
    return batch if form is None else batch.views[form]


def _repeats(rules: RuleVector | None) -> bool:
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
