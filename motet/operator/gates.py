"""Gates: classifiers of prompts, by which a gated composition answers or what stands beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from motet.models.classifier import Classifier
from motet.operator.section import Section
from motet.settings import nearest, sentences


class GateConfig(Section):
    """A classifier of prompts: a Hugging Face checkpoint for sequence classification, read on the CPU in float32."""

    path: Annotated[str, Field(min_length=1)]
    """A folder with config.json, safetensors and a fast tokenizer (relative to the operator's file)."""
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Which labels count, as `id2label` in config.json names them; their probabilities are summed."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A prompt whose probability is as great or greater passes to the composition."""
    reads: Literal["prompt", "last_user"] = "prompt"
    """`prompt`: all texts of all messages, and what tools are described by; `last_user`: the last user message alone.
    Of a request without messages both read the prompt's text."""
    context: Annotated[int, Field(ge=8)] | None = None
    """Tokens that it reads at once, by default what the checkpoint says, 2,048 at most. A longer text is read in
    windows that overlap by a quarter; the greatest probability counts."""
    max_windows: Annotated[int, Field(ge=1)] = 64
    """Prompts that have more windows are refused: nothing is left unread."""


class Gated(Section):
    """A named composition that answers some prompts, and something else the others."""

    strategy: Literal["gated"]
    """What makes it one."""
    gate: Annotated[str, Field(min_length=1)]
    """The gate that decides, once per prompt, before anything is computed."""
    composition: Annotated[str, Field(min_length=1)]
    """The named composition, or the model, that answers prompts of the gate's threshold and above."""
    otherwise: Annotated[str, Field(min_length=1)]
    """The named composition, or the model, that answers all others."""

    def side(self, applied: bool) -> str:
        return self.composition if applied else self.otherwise


@dataclass(frozen=True)
class Gate:
    """A loaded gate."""

    name: str
    config: GateConfig
    classifier: Classifier


@dataclass(frozen=True)
class Decision:
    """What a gate said of one prompt. `score`: the greatest probability of any window."""

    gate: str
    score: float
    threshold: float

    @property
    def applied(self) -> bool:
        return self.score >= self.threshold


def is_gated(written: object) -> bool:
    """Whether a composition of the operator's file names this strategy."""
    match written:
        case {"strategy": "gated"}:
            return True
        case _:
            return False


def read_gated(
    name: str, written: Mapping[str, Any], gates: Collection[str], sides: Collection[str]
) -> tuple[Gated | None, list[str]]:
    """A gated composition of the operator's file, and what is wrong with it.

    Args:
        gates: the names of the file's gates.
        sides: the names of its models and of its compositions that are not gated.
    """
    where = f"compositions.{name}"
    try:
        gated = Gated.model_validate(written)
    except ValidationError as error:
        told = sentences(error.errors(include_url=False), Gated, written, lambda problem: problem["msg"])
        return None, [f"{where}.{sentence}." for sentence in told]
    problems: list[str] = []
    if gated.gate not in gates:
        known = f" Gates: {', '.join(gates) or 'none'}."
        problems.append(f"{where}.gate: no gate is named {gated.gate!r}.{nearest(gated.gate, gates)}{known}")
    for field in ("composition", "otherwise"):
        side: str = getattr(gated, field)
        if side not in sides:
            problems.append(f"{where}.{field}: no model and no composition is named {side!r}.{nearest(side, sides)}")
    return gated, problems


def load_gates(configs: Mapping[str, GateConfig], folder: Path) -> tuple[dict[str, Gate], list[str]]:
    """The gates of an operator's file in `folder`, weights included, and what is wrong with the others."""
    gates: dict[str, Gate] = {}
    problems: list[str] = []
    for name, config in configs.items():
        place = (folder / Path(config.path).expanduser()).resolve()
        try:
            gates[name] = Gate(name, config, Classifier.load(place, config.labels, config.context))
        except (OSError, ValueError) as error:
            problems.append(f"gates.{name}: {str(error).rstrip('.')}.")
    return gates, problems
