"""One run in memory: models, policies, optimisers and the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from motet.training.batch import Batch, StepData
from motet.training.data.dataset import TokenDataset
from motet.training.loop import Loop, Schedule
from motet.training.objectives.objective import Calibration, Loss
from motet.training.optim import make_optimizers
from motet.training.policies.assemble import assemble, teacher_policy
from motet.training.policies.composed import ComposedPolicy
from motet.training.policies.model import PackingError
from motet.training.policies.teacher import (
    LiveTeacher,
    StoredTeacher,
    TeacherError,
    load_or_store,
    teacher_key,
    whole_batches,
)
from motet.training.policy import HiddenPolicy, Policies
from motet.training.recipe import VALIDATION, Checkpoint, Half, Recipe
from motet.training.run.checkpoint import State
from motet.training.run.errors import RunError
from motet.training.run.identity import data_hash
from motet.training.run.models import load_model
from motet.training.run.paths import Diverging
from motet.training.run.preparation import Preparation, prepare
from motet.training.run.recomputation import Recomputation, apply, choose
from motet.training.run.result import relative_base
from motet.training.run.tuning import FreezingRounds, compute_dtype, trained_parameters
from motet.training.run.tuning import prepare as prepare_tuning


class Session:
    """Loads what a recipe names and is ready to step. Writes nothing.

    Equal (recipe, seed, data) give equal weights on one machine in float32 on a CPU. The global random generator of
    torch is seeded, for dropout.

    Attributes:
        model: what is trained: a transformers model, or a PEFT model around one.
        head: trained beside it, where the objective has one.
        parameters: everything that is trained, by name.
        loop: does the steps.
        validating: the policies, with the teacher of the validation data.
        tokens: read so far, without padding.
        models: all that were loaded, members too.
        recomputation: what the trained model computes again in the backward pass.

    Args:
        recipe: a valid one.
        recipe_folder: where relative paths start unless the recipe has a `root`.
        root: overrides the recipe's root.
        output: overrides the recipe's output (an adapter names its base relative to it).
        preparation: that of the recipe, where the caller has it.

    Raises:
        RunError: all problems of fields, data and models' files together; then of the weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        recipe_folder: Path | None = None,
        *,
        root: Path | None = None,
        output: Path | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        self.recipe = recipe
        self.preparation = preparation or prepare(recipe, recipe_folder or Path.cwd(), root)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = compute_dtype(recipe.precision, self.device)
        self.tokens = 0
        self.models: list[nn.Module] = []
        self.model = self._trained_model(output or recipe.output)
        self.models.append(self.model)
        self.policies = self.validating = self._policies()
        self.head = self.policies.head
        self.parameters = trained_parameters(self.model, self.head)
        self.loop = self._loop()

    @property
    def state(self) -> State:
        """What checkpoints hold."""
        return State(self.parameters, self.loop.optimizers)

    def data(self, step: int, micro: int = 0) -> StepData:
        """The batches of a micro-batch, on the session's device."""
        batches = self.preparation.source.at(step, micro)
        self.tokens += sum(batch.num_tokens for batch in batches.values())
        if self.device.type == "cpu":
            return batches
        return {name: batch.to(self.device) for name, batch in batches.items()}

    def loss(self, step: int, micro: int = 0) -> Loss:
        """The objective's loss of a micro-batch.

        Raises:
            RunError: the architecture cannot read packed rows.
        """
        try:
            loss = self.recipe.objective.loss(self.policies, self.data(step, micro))
        except PackingError as error:
            raise RunError(f"batch.packing: {error}") from error
        trained = self.policies.trained
        if isinstance(trained, ComposedPolicy) and trained.plan.masks:
            return replace(loss, parts={**loss.parts, "masked": trained.masked_share})
        return loss

    def _trained_model(self, output: Path) -> nn.Module:
        recipe, prepared = self.recipe, self.preparation
        source = recipe.model
        try:
            model = load_model(
                source,
                prepared.root,
                tokenizer=prepared.tokenizer,
                seed=recipe.seed,
                dtype=self._base_dtype(),
                precision=self.dtype,
            )
        except RunError as error:
            raise RunError([f"model: {problem}" for problem in error.problems]) from error
        base = relative_base(source, prepared.root, output) if isinstance(source, Checkpoint) else ""
        torch.manual_seed(recipe.seed)
        tuned = prepare_tuning(model, recipe.tuning, base=base, tokenizer=prepared.tokenizer)
        tuned = tuned.to(self.device).train()
        self.recomputation: Recomputation = choose(recipe.gradient_checkpointing, model, _tokens_at_once(prepared))
        apply(self.recomputation, model)
        return tuned

    def _base_dtype(self) -> torch.dtype | None:
        """Trained parameters are read as float32, the base of an adapter in its own type."""
        return None if self.recipe.tuning.type in ("lora", "soft_prompt") else torch.float32

    def _policies(self) -> Policies:
        recipe, prepared = self.recipe, self.preparation
        members = {name: self._member(name, source) for name, source in recipe.members.items()}
        self.models += members.values()
        policies = assemble(
            recipe,
            self.model,
            members,
            dtype=self.dtype,
            plan=prepared.plan,
            eos_token_ids=self._ends,
            classes=prepared.classes,
        )
        if policies.head is not None:
            policies.head.to(self.device)
        teacher_tokens = recipe.objective.teacher_tokens
        if teacher_tokens is None:
            return policies
        teacher = teacher_policy(recipe, policies.members, prepared.teaching, self._ends)
        if (paths := recipe.objective.paths) is not None:
            writer = members[cast("str", getattr(recipe.objective, "teacher", None))]
            teacher = Diverging(cast("HiddenPolicy", policies.trained), teacher, writer, paths, prepared)
        return replace(policies, teacher=LiveTeacher(teacher, teacher_tokens))

    def store_teacher(self, folder: Path) -> None:
        """Computes a distillation's teacher once, or finds it in `folder`; other objectives have none.

        Raises:
            RunError: what is stored is damaged, or the folder cannot be written.
        """
        live, prepared = self.policies.teacher, self.preparation
        if not isinstance(live, LiveTeacher):
            return
        stored = self._stored(live, prepared.datasets["train"], folder, prepared.identity)
        self.policies = self.validating = replace(self.policies, teacher=stored)
        if prepared.validation is not None:
            own = prepared.identity | {"data": data_hash({VALIDATION: prepared.validation})}
            apart = self._stored(live, prepared.validation, folder / VALIDATION, own)
            self.validating = replace(self.policies, teacher=apart)

    def _stored(
        self, live: LiveTeacher, dataset: TokenDataset, folder: Path, identity: Mapping[str, str]
    ) -> StoredTeacher:
        try:
            key = teacher_key(**identity, precision=str(self.dtype))
            return load_or_store(live.policy, self._whole(dataset), folder, key, live.k)
        except (TeacherError, OSError) as error:
            raise RunError(f"the teacher's distributions: {error}") from error

    def _whole(self, dataset: TokenDataset) -> Iterator[Batch]:
        """All documents of a dataset once, no more at a time than a step reads."""
        rows = max(1, self.recipe.batch.rows // self.recipe.batch.accumulate)
        for batch in whole_batches(dataset, self.preparation.pad_id, min(rows, 32)):
            yield batch.to(self.device)

    @torch.no_grad()
    def calibrated(self) -> Calibration:
        """What the bundle says of the trained head."""
        prepared = self.preparation
        validation, leading = prepared.validation, prepared.datasets[prepared.source.leading]
        if validation is None or self.recipe.objective.learns_at_end:
            return self.recipe.objective.calibrated(self.policies, self._whole(leading))
        return self.recipe.objective.calibrated(self.validating, self._whole(validation))

    def initialise(self) -> None:
        """What a fresh run does before its first step."""
        self.recipe.objective.initialise(self.policies, self.data)
        torch.manual_seed(self.recipe.seed)

    @property
    def _ends(self) -> tuple[int, ...]:
        end = cast("int | None", cast(Any, self.preparation.tokenizer).eos_token_id)
        return () if end is None else (end,)

    def _member(self, name: str, source: Checkpoint) -> PreTrainedModel:
        prepared = self.preparation
        try:
            model = load_model(source, prepared.root, tokenizer=prepared.tokenizer, precision=self.dtype)
        except RunError as error:
            raise RunError([f"members.{name}: {problem}" for problem in error.problems]) from error
        return cast(Any, model).to(self.device)

    def _loop(self) -> Loop:
        recipe, steps = self.recipe, self.preparation.steps
        schedule = Schedule(steps, recipe.schedule.warmup_steps(steps), recipe.schedule.decay, recipe.schedule.floor)
        optimizers = make_optimizers(self.parameters, recipe.optimizer)
        loop = Loop(optimizers, schedule, self.loss, self.preparation.source.micro_batches, recipe.optimizer.clip)
        if isinstance(recipe.tuning, Half):
            loop.enter = FreezingRounds(self.parameters, recipe.tuning, recipe.seed, steps).enter
        return loop


def _tokens_at_once(prepared: Preparation) -> int:
    """Tokens of a micro-batch, padding included: those of the first one."""
    return sum(batch.input_ids.numel() for batch in prepared.source.at(0).values())
