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

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from motet.training.objectives import AnyObjective

TRAINED = "trained"  # the name of the trained model in `through`
VALIDATION = "validation"  # of `data`, what is measured and not learnt

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Setting(BaseModel):
    """Frozen, and strict about names that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(Setting):
    """A Hugging Face folder or hub id; only its first `layers` layers where given (norm and head are kept).

    `dtype` is that of parameters that are not trained: auto is bfloat16 where the checkpoint is and the run computes in
    it, else float32.
    """

    path: str
    layers: PositiveInt | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class Fresh(Setting):
    """New weights from a transformers configuration (with its `model_type`) for an existing tokenizer's vocabulary.

    `vocab_size` and the special tokens' ids are the tokenizer's unless the configuration names them.
    """

    fresh: dict[str, Any]
    tokenizer: str


class Lora(Setting):
    """Low-rank adapters; rank-stabilised scaling α/√r (Kalajdzievski, 2023) unless switched off."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Share = 0.0
    rank_stabilized: bool = True
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # all-linear leaves the head alone
    merge: bool = False  # write full weights with the adapter merged in


class Full(Setting):
    """All parameters."""

    type: Literal["full"] = "full"


class Half(Setting):
    """Half fine-tuning (Hui et al., 2024): in each round a random share of the parameter tensors is frozen."""

    type: Literal["half"] = "half"
    frozen: Share = 0.5
    rounds: PositiveInt = 1


class Dataset(Setting):
    """Records of one role, or of `validation`: measured as the objective's first dataset is, and not learnt.

    `format` auto recognises the columns; globs are allowed in `files`.

    `loss` says which tokens count: answers alone (prompts are masked), or all. `template` is the prompt's form:
    the tokenizer's chat template, or the text as it stands; auto takes the chat template for messages and for
    prompt + completion where the tokenizer has one.
    """

    files: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
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
    loss: Literal["auto", "completion", "all"] = "auto"
    # Loss weights of the kinds that records name in `spans`; `rest` is the weight of tokens outside of spans.
    span_weights: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = Field(default_factory=dict[str, float])
    template: Literal["auto", "chat", "plain"] = "auto"
    rows: PositiveInt | None = None  # documents (or packed rows) per step; by default the batch's
    limit: PositiveInt | None = None
    shuffle: bool = True


class Batching(Setting):
    """Rows per step (over all micro-batches), tokens per row, packing.

    `packing` fit fills rows with whole documents, wrap cuts the stream of documents into full rows; either way
    attention stays within a document. Documents longer than `max_length` are refused unless `truncate`.
    """

    rows: PositiveInt = 8
    max_length: PositiveInt = 512
    packing: Literal["none", "fit", "wrap"] = "none"
    accumulate: PositiveInt = 1  # micro-batches per step
    truncate: bool = False


class AdamW(Setting):
    """AdamW (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    clip: PositiveFloat | None = None  # maximal norm of the gradient


class Muon(Setting):
    """Muon on the hidden matrices, AdamW with `adamw_lr` on embeddings, head and norms: for training from scratch."""

    type: Literal["muon"] = "muon"
    lr: PositiveFloat = 0.005
    adamw_lr: PositiveFloat = 0.03
    clip: PositiveFloat | None = None


class Scheduling(Setting):
    """Length, linear warm-up, constant rate, linear decay over the last `decay` share down to `floor` of the peak.

    `epochs` are those of the objective's first dataset, whose rows are read so often and not more. `warmup` is in
    steps; by default a tenth of them, ten at the most.
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    warmup: Annotated[int, Field(ge=0)] | None = None
    decay: Share = 0.7
    floor: Share = 0.02

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


class Checkpoints(Setting):
    """A checkpoint every `every` steps (none by default but on an interrupt), the last `keep` of them kept."""

    every: PositiveInt | None = None
    keep: PositiveInt = 2


class Logging(Setting):
    """Metrics go to `metrics.jsonl` in the output folder every `every` steps, to tensorboard where asked for."""

    every: PositiveInt = 10
    tensorboard: bool = False


class ExpertCard(Setting):
    """What the server shall know of the result: written to `expert.json`."""

    role: str = "expert"  # a role of the recommended strategy
    partner: str | None = None  # the untuned model that the expert is set against
    base_family: str | None = None
    strategy: str | None = None
    weight: FiniteFloat | None = None
    weight_range: tuple[FiniteFloat, FiniteFloat] | None = None


class Recipe(Setting):
    """One run."""

    name: str | None = None  # by default the output folder's name
    root: str | None = None
    output: Path
    seed: Annotated[int, Field(ge=0)] = 0
    model: Checkpoint | Fresh
    members: dict[str, Checkpoint] = Field(default_factory=dict[str, Checkpoint])  # frozen models that others name
    tuning: Annotated[Lora | Full | Half, Field(discriminator="type")] = Lora()
    objective: AnyObjective
    # A composition in which the trained model has the name `trained`, the others are `members`: the loss is then
    # taken on the composed distribution.
    through: dict[str, Any] | None = None
    data: dict[str, Dataset] = Field(min_length=1)
    batch: Batching = Batching()
    optimizer: Annotated[AdamW | Muon, Field(discriminator="type")] = AdamW()
    schedule: Scheduling
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the computation; trained parameters are float32
    # true keeps each layer's input alone for the backward pass and computes the layer anew; selective keeps the matrix
    # products, too, which are most of the work; auto takes what pays (see `run.recomputation`). No digit depends on it.
    gradient_checkpointing: Literal["auto", "selective"] | bool = "auto"
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    expert: ExpertCard = ExpertCard()
