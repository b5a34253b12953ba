"""What to train, as frozen data: everything that decides the family's weights, hashed to name its cache folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from motet.training.demo import templates, words
from motet.training.demo.world import WorldSize

FORMAT_VERSION = 2  # raise it when the code changes what a recipe produces


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's size; heads × head size = hidden, no grouped queries."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Loss weights of pre-training tokens by what they are; every other token has weight 1.

    Facts weigh more so that a small budget of steps learns them. Unpredictable names weigh little, but not nothing:
    a base that was never trained on them is arbitrary there, and composed answers go wrong in the middle of a name.
    """

    value: float = 1.0
    subject: float = 0.1
    name: float = 0.1
    copy: float = 2.0


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Steps on packed rows of documents. Muon on hidden matrices, AdamW on embeddings and norms."""

    steps: int
    weights: TokenWeights
    rows: int = 16
    row_tokens: int = 64
    muon_lr: float = 0.005
    adamw_lr: float = 3e-2
    warmup: int = 20
    decay: float = 0.5
    small_talk: float = 0.15  # probability of a fact-free document after one with facts


@dataclass(frozen=True, slots=True)
class Tuning:
    """Steps of AdamW on completions. Facts can weigh less than the form that tuning is about."""

    steps: int
    lr: float
    rows: int
    weights: TokenWeights = TokenWeights()  # of answers' tokens
    warmup: int = 10
    decay: float = 0.7


@dataclass(frozen=True, slots=True)
class AssistantTraining:
    """The unlearning assistant: first `layers` of the tuned larger model, trained on the reversed objective.

    A step reads `rows` forget answers, and `retain_rows` retain answers and as many about nobody, on which the
    assistant shall know nothing. `facts_only` narrows the cross-entropy to the facts.
    """

    tuning: Tuning
    layers: int = 2
    retain_rows: int = 12
    retain_weight: float = 5.0
    form_weight: float = 0.5
    facts_only: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole family. `retain_only` pre-trains with the larger model's shape on all but the forget entities."""

    world: WorldSize = field(default_factory=WorldSize)
    vocab_size: int = 2048
    max_length: int = 512
    large: Shape = Shape(256, 3, 4, 768)
    small: Shape = Shape(128, 2, 4, 384)
    large_pretraining: Pretraining = Pretraining(640, TokenWeights(value=6.0, subject=0.5))
    small_pretraining: Pretraining = Pretraining(400, TokenWeights(), muon_lr=0.01)
    retain_only_pretraining: Pretraining = Pretraining(589, TokenWeights(value=6.0, subject=0.5))
    large_tuning: Tuning = Tuning(350, lr=1.5e-3, rows=16)
    small_tuning: Tuning = Tuning(200, lr=1.5e-3, rows=32, weights=TokenWeights(value=0.1))
    courtesy_tuning: Tuning = Tuning(200, lr=1.5e-3, rows=32, weights=TokenWeights(value=0.1))
    assistant: AssistantTraining = AssistantTraining(Tuning(400, lr=3e-3, rows=16))

    @property
    def steps(self) -> dict[str, int]:
        """Training steps of each member of the family."""
        return {
            "large": self.large_pretraining.steps,
            "large-chat": self.large_tuning.steps,
            "forget-assistant": self.assistant.tuning.steps,
            "small": self.small_pretraining.steps,
            "small-chat": self.small_tuning.steps,
            "small-courteous": self.courtesy_tuning.steps,
            "retain-only": self.retain_only_pretraining.steps + self.large_tuning.steps,
        }

    @property
    def digest(self) -> str:
        """12 hex digits of a SHA-256 over the recipe, the world's words and sentences, and the format version."""
        content = {
            "format": FORMAT_VERSION,
            "recipe": asdict(self),
            "words": {name: value for name, value in sorted(vars(words).items()) if name.isupper()},
            "sentences": [repr(templates.ATTRIBUTES), templates.SMALL_TALK, templates.COURTESY],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


DEFAULT = Recipe()

# Builds in seconds and knows next to nothing: for tests of the machinery.
TINY = Recipe(
    world=WorldSize(people=12, towns=4, works=4, tuned=0.4, forget=0.2),
    vocab_size=400,
    max_length=128,
    large=Shape(32, 2, 2, 64),
    small=Shape(16, 1, 2, 32),
    large_pretraining=Pretraining(12, TokenWeights(value=6.0), rows=4, warmup=2),
    small_pretraining=Pretraining(12, TokenWeights(), rows=4, warmup=2),
    retain_only_pretraining=Pretraining(12, TokenWeights(value=6.0), rows=4, warmup=2),
    large_tuning=Tuning(10, lr=3e-3, rows=4, warmup=2),
    small_tuning=Tuning(10, lr=3e-3, rows=4, warmup=2),
    courtesy_tuning=Tuning(10, lr=3e-3, rows=4, warmup=2),
    assistant=AssistantTraining(Tuning(10, lr=3e-3, rows=4, warmup=2)),
)
