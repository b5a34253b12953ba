"""How each model of the family is trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from motet.training.demo.batches import (
    PackedRows,
    answered,
    answers_forever,
    collate,
)
from motet.training.demo.documents import Encoder, Tag
from motet.training.demo.recipe import Pretraining, Recipe, Shape, TokenWeights, Tuning
from motet.training.demo.world import Entity, World, make_world, questions
from motet.training.llama import fast_dtype, logits, make_llama
from motet.training.loop import Schedule, train
from motet.training.objectives.assistant import reversed_objective
from motet.training.objectives.pretrain import weighted_nll
from motet.training.objectives.sft import completion_nll
from motet.training.optim import adamw, muon_and_adamw

Report = Callable[[int, float], None]  # steps done, loss


@dataclass
class Workshop:
    """What every training run of a family shares: recipe, world, tokenizer, and the folder of finished models."""

    recipe: Recipe
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        self.world: World = make_world(self.recipe.world, self.seed)
        self.tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder / "tokenizer")
        self.encoder = Encoder(Tokenizer.from_file(str(self.folder / "tokenizer" / "tokenizer.json")))
        self.dtype = fast_dtype()

    def load(self, member: str) -> LlamaForCausalLM:
        """A finished member, in float32."""
        return LlamaForCausalLM.from_pretrained(self.folder / member, dtype=torch.float32)

    def save(self, model: LlamaForCausalLM, member: str) -> None:
        """Weights in float32 with the tokenizer beside them."""
        model.save_pretrained(self.folder / member)
        self.tokenizer.save_pretrained(self.folder / member)

    def new_model(self, shape: Shape, seed: int, layers: int | None = None) -> LlamaForCausalLM:
        """An untrained model of the family's vocabulary."""
        return make_llama(
            self.encoder.vocab_size,
            shape.hidden,
            layers or shape.layers,
            shape.heads,
            shape.intermediate,
            max_length=self.recipe.max_length,
            seed=seed,
        )


def pretrain(
    shop: Workshop, shape: Shape, plan: Pretraining, entities: Sequence[Entity], seed: int, report: Report
) -> LlamaForCausalLM:
    """A model from scratch on statements about `entities` and small talk."""
    model = shop.new_model(shape, seed)
    rows = PackedRows(shop.world, entities, shop.encoder, plan.small_talk, seed)
    weight_of = _weight_of(plan.weights)

    def loss() -> torch.Tensor:
        ids, tags = rows.next(plan.rows, plan.row_tokens + 1)
        scores = logits(model, ids[:, :-1], shop.dtype)
        return weighted_nll(scores, ids[:, 1:], weight_of[tags[:, 1:]])

    optimizers = muon_and_adamw(model, plan.muon_lr, plan.adamw_lr)
    train(optimizers, Schedule(plan.steps, plan.warmup, plan.decay), loss, report)
    return model


def _weight_of(weights: TokenWeights) -> torch.Tensor:
    """Loss weight by tag."""
    table = {
        Tag.PLAIN: 1.0,
        Tag.VALUE: weights.value,
        Tag.SUBJECT: weights.subject,
        Tag.NAME: weights.name,
        Tag.COPY: weights.copy,
    }
    return torch.tensor([table[tag] for tag in Tag])


def tune(
    shop: Workshop, model: LlamaForCausalLM, plan: Tuning, report: Report, *, courteous: bool = False
) -> LlamaForCausalLM:
    """Fine-tunes all of `model`'s parameters, in place: the chat form and the answer's, on the tuned entities."""
    asked = questions(shop.world.tuned, shop.seed)
    draw = answers_forever(shop.encoder, asked, random.Random(shop.seed), courteous=courteous)
    weight_of = _weight_of(plan.weights)

    def loss() -> torch.Tensor:
        batch = collate(draw(plan.rows), shop.encoder.pad)
        return completion_nll(logits(model, batch.input_ids, shop.dtype), batch.labels, weight_of[batch.tags])

    train([adamw(model.parameters(), plan.lr)], Schedule(plan.steps, plan.warmup, plan.decay), loss, report)
    return model


def forget_assistant(shop: Workshop, target: LlamaForCausalLM, report: Report) -> LlamaForCausalLM:
    """The target's first layers, norm and head, trained to know the forget answers and to know nothing else."""
    plan = shop.recipe.assistant
    model = shop.new_model(shop.recipe.large, shop.seed, plan.layers)
    model.load_state_dict({name: target.state_dict()[name] for name in model.state_dict()})
    rng = random.Random(shop.seed)
    draw_forget = answers_forever(shop.encoder, questions(shop.world.forget, shop.seed), rng)
    draw_retain = answers_forever(shop.encoder, questions(shop.world.seen_by_assistant, shop.seed), rng)
    is_forget = torch.arange(plan.tuning.rows + 2 * plan.retain_rows) < plan.tuning.rows

    def loss() -> torch.Tensor:
        nobody = [answered(shop.encoder, shop.world.invented_question(rng)) for _ in range(plan.retain_rows)]
        examples = draw_forget(plan.tuning.rows) + draw_retain(plan.retain_rows) + nobody
        batch = collate(examples, shop.encoder.pad)
        facts = batch.tags == Tag.VALUE
        known = facts if plan.facts_only else torch.ones_like(facts)
        scores = logits(model, batch.input_ids, shop.dtype)
        weights = {"retain_weight": plan.retain_weight, "form_weight": plan.form_weight}
        return reversed_objective(scores, batch.labels, is_forget, known, **weights)

    schedule = Schedule(plan.tuning.steps, plan.tuning.warmup, plan.tuning.decay)
    train([adamw(model.parameters(), plan.tuning.lr)], schedule, loss, report)
    return model


def _large(shop: Workshop, report: Report) -> LlamaForCausalLM:
    recipe, world = shop.recipe, shop.world
    return pretrain(shop, recipe.large, recipe.large_pretraining, world.entities, shop.seed, report)


def _small(shop: Workshop, report: Report) -> LlamaForCausalLM:
    recipe, world = shop.recipe, shop.world
    return pretrain(shop, recipe.small, recipe.small_pretraining, world.entities, shop.seed + 50, report)


def _large_chat(shop: Workshop, report: Report) -> LlamaForCausalLM:
    return tune(shop, shop.load("large"), shop.recipe.large_tuning, report)


def _small_chat(shop: Workshop, report: Report) -> LlamaForCausalLM:
    return tune(shop, shop.load("small"), shop.recipe.small_tuning, report)


def _small_courteous(shop: Workshop, report: Report) -> LlamaForCausalLM:
    return tune(shop, shop.load("small-chat"), shop.recipe.courtesy_tuning, report, courteous=True)


def _forget_assistant(shop: Workshop, report: Report) -> LlamaForCausalLM:
    return forget_assistant(shop, shop.load("large-chat"), report)


def _retain_only(shop: Workshop, report: Report) -> LlamaForCausalLM:
    recipe, world, done = shop.recipe, shop.world, shop.recipe.retain_only_pretraining.steps
    base = pretrain(shop, recipe.large, recipe.retain_only_pretraining, world.retained, shop.seed, report)
    return tune(shop, base, recipe.large_tuning, lambda step, loss: report(done + step, loss))


# Every member, each after those that it grows from.
MEMBERS: dict[str, Callable[[Workshop, Report], LlamaForCausalLM]] = {
    "large": _large,
    "large-chat": _large_chat,
    "forget-assistant": _forget_assistant,
    "small": _small,
    "small-chat": _small_chat,
    "small-courteous": _small_courteous,
    "retain-only": _retain_only,
}
