"""A training recipe: one YAML file, validated as a whole, frozen.

    root: demo
    output: out/small-chat
    model: {path: small}
    objective: {type: sft}
    data:
      train: {files: [data/tuned.jsonl]}
    schedule: {steps: 200, warmup: 10}

Relative paths of models and data are taken from `root` (by default the recipe's own folder; to `motet train`, `demo` is
the cached demo family of seed 0, `demo:3` of seed 3), `output` from the working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, PositiveInt, model_validator

from motet.settings import Setting
from motet.training.objectives import AnyObjective

TRAINED = "trained"  # the name of the trained model in `through`
VALIDATION = "validation"  # of `data`, what is measured and not learnt

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Checkpoint(Setting, frozen=True):
    """An existing model."""

    path: str
    """A Hugging Face folder, a GGUF file or a hub id."""
    layers: PositiveInt | None = None
    """Only its first so many layers; norm and head are kept."""
    revision: str | None = None
    """Of a hub id: a branch, a tag or a commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of parameters that are not trained: `auto` is bfloat16 where the checkpoint is and the run computes in it, else
    float32."""


class Fresh(Setting, frozen=True):
    """New weights for an existing tokenizer's vocabulary."""

    fresh: dict[str, Any]
    """A transformers configuration with its `model_type`; `vocab_size` and the special tokens' ids are the tokenizer's
    unless it names them."""
    tokenizer: str
    """The folder or hub id of the tokenizer."""


class Lora(Setting, frozen=True):
    """Low-rank adapters (Hu et al., 2021)."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 16
    """The rank."""
    alpha: PositiveFloat = 32.0
    """The adapter's output is scaled by α/√r, or α/r."""
    dropout: Share = 0.0
    """Of the adapter's input."""
    rank_stabilized: bool = True
    """α/√r (Kalajdzievski, 2023) instead of α/r."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the modules that get one; `all-linear` leaves the head alone."""
    merge: bool = False
    """Write full weights with the adapter merged in."""

    @property
    def writes_adapter(self) -> bool:
        return not self.merge


class SoftPrompt(Setting, frozen=True):
    """Prompt tuning (Lester et al., 2021): embeddings in front of whatever the model reads, which stays as it is."""

    type: Literal["soft_prompt"] = "soft_prompt"
    tokens: PositiveInt = 20
    """How many; each takes as much of the context as a token."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """They begin as the embeddings of this text, again and again; left out, as those of random tokens."""

    @property
    def writes_adapter(self) -> bool:
        return True


class Full(Setting, frozen=True):
    """All parameters."""

    type: Literal["full"] = "full"

    @property
    def writes_adapter(self) -> bool:
        return False


class Half(Setting, frozen=True):
    """Half fine-tuning (Hui et al., 2024): in each round a random share of the parameter tensors is frozen."""

    type: Literal["half"] = "half"
    frozen: Share = 0.5
    """That share."""
    rounds: PositiveInt = 1
    """How often it is drawn, in parts of equal length of the run."""

    @property
    def writes_adapter(self) -> bool:
        return False


Tuning = Lora | Full | Half | SoftPrompt  # `writes_adapter`: the result needs its base beside it


class Dataset(Setting, frozen=True):
    """Records of one role, or of `validation`: measured as the objective's first dataset is, and not learnt."""

    files: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
    """One or several; globs are allowed."""
    format: Literal[
        "auto",
        "text",
        "messages",
        "prompt_completion",
        "question_answer",
        "preference",
        "labelled",
        "classes",
        "counterfactual",
        "alpaca",
        "sharegpt",
    ] = "auto"
    """`auto` recognises the columns of each file."""
    loss: Literal["auto", "completion", "all"] = "auto"
    """Which tokens count: answers alone (prompts are masked), or all; `auto` is all for `text`, else answers."""
    span_weights: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = Field(default_factory=dict[str, float])
    """Loss weights of the kinds that records name in `spans`; `rest` is the weight of tokens outside of spans."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """The prompt's form: the tokenizer's chat template, or the text as it stands; `auto` takes the chat template for
    messages and for prompt + completion where the tokenizer has one."""
    rows: PositiveInt | None = None
    """Documents (or packed rows) per step; by default the batch's."""
    limit: PositiveInt | None = None
    """Records that are read at most."""
    shuffle: bool = True
    """A new order in every epoch."""


class Batching(Setting, frozen=True):
    """What a step reads."""

    rows: PositiveInt = 8
    """Rows per step, over all micro-batches."""
    max_length: PositiveInt = 512
    """Tokens per row."""
    packing: Literal["none", "fit", "wrap"] = "none"
    """`fit` fills rows with whole documents, `wrap` cuts the stream of documents into full rows; either way attention
    stays within a document."""
    accumulate: PositiveInt = 1
    """Micro-batches per step."""
    truncate: bool = False
    """Cut documents that are longer than `max_length`, instead of refusing them."""


class AdamW(Setting, frozen=True):
    """AdamW (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-4
    """Learning rate at the peak of the schedule."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    """Decay rates of the two moments."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Decoupled, in units of the learning rate."""
    clip: PositiveFloat | None = None
    """Maximal norm of the gradient."""


class Muon(Setting, frozen=True):
    """Muon on the hidden matrices, AdamW with `adamw_lr` on embeddings, head and norms: for training from scratch."""

    type: Literal["muon"] = "muon"
    lr: PositiveFloat = 0.005
    """Learning rate of the matrices at the peak of the schedule."""
    adamw_lr: PositiveFloat = 0.03
    """That of everything else."""
    clip: PositiveFloat | None = None
    """Maximal norm of the gradient."""


class Scheduling(Setting, frozen=True):
    """Length (either `steps` or `epochs`), linear warm-up, constant rate, linear decay."""

    steps: PositiveInt | None = None
    """Optimiser steps in all."""
    epochs: PositiveFloat | None = None
    """Of the objective's first dataset, whose rows are read so often and not more."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """In steps; by default a tenth of them, ten at the most."""
    decay: Share = 0.7
    """The last share of the steps, over which the rate falls."""
    floor: Share = 0.02
    """Where it ends, as a share of the peak."""

    @model_validator(mode="after")
    def _one_length(self) -> Scheduling:
        if self.steps is None and self.epochs is None:
            raise ValueError("give either steps or epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both; schedule={epochs: 3} in an override replaces both")
        return self

    def warmup_steps(self, steps: int) -> int:
        """Of so many steps; a longer warm-up than half of the run is cut there, or its peak would never be reached."""
        return min(10, steps // 10) if self.warmup is None else min(self.warmup, steps // 2)


class Checkpoints(Setting, frozen=True):
    """What `--resume` goes on from."""

    every: PositiveInt | None = None
    """In steps; by default none is written but on an interrupt."""
    keep: PositiveInt = 2
    """The last so many."""


class Logging(Setting, frozen=True):
    """Metrics go to `metrics.jsonl` in the output folder."""

    every: PositiveInt = 10
    """In steps."""
    tensorboard: bool = False
    """Write them for tensorboard, too."""


class ExpertCard(Setting, frozen=True):
    """What the server shall know of the result: written to `expert.json`."""

    role: str = "expert"
    """A role of the recommended strategy."""
    partner: str | None = None
    """The untuned model that the expert is set against."""
    base_family: str | None = None
    """Experts and partners of one family have one name here."""
    strategy: str | None = None
    """The recommended strategy."""
    weight: FiniteFloat | None = None
    """The recommended weight in it."""
    weight_range: tuple[FiniteFloat, FiniteFloat] | None = None
    """Weights that make sense."""


class Recipe(Setting, frozen=True):
    """One run."""

    name: str | None = None
    """By default the output folder's name."""
    root: str | None = None
    """The folder of relative paths, by default the recipe's own; `demo` is the cached demo family of seed 0, `demo:3`
    that of seed 3."""
    output: Path
    """The folder to write, relative to the working directory."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of initial weights, order and dropout."""
    model: Checkpoint | Fresh
    """What is trained."""
    members: dict[str, Checkpoint] = Field(default_factory=dict[str, Checkpoint])
    """Frozen models that `through` and objectives name."""
    tuning: Annotated[Tuning, Field(discriminator="type")] = Lora()
    """Which parameters are trained."""
    objective: AnyObjective
    """What is minimised."""
    through: dict[str, Any] | None = None
    """A composition in which the trained model has the name `trained`, the others are `members`: the loss is then taken
    on the composed distribution."""
    data: dict[str, Dataset] = Field(min_length=1)
    """The objective's datasets by name, and `validation`."""
    batch: Batching = Batching()
    optimizer: Annotated[AdamW | Muon, Field(discriminator="type")] = AdamW()
    schedule: Scheduling
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; trained parameters are float32."""
    gradient_checkpointing: Literal["auto", "selective"] | bool = "auto"
    """`true` keeps each layer's input alone for the backward pass and computes the layer anew; `selective` keeps the
    matrix products, too, which are most of the work; `auto` takes what pays. No digit depends on it."""
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    expert: ExpertCard = ExpertCard()
