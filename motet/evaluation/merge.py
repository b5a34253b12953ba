"""Weight merging, a baseline that needs no second model at inference: θ = θ_base + Σ λ_i (θ_i − θ_ref,i).

With references that are the base this is task arithmetic (Ilharco et al. 2023, arXiv:2212.04089); with two models of
one shape, λ = 0.5 and the base as the reference, their average (Wortsman et al. 2022, arXiv:2203.05482).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from motet.evaluation.settings import RecipeError
from motet.models.checkpoint import load_weights, read_tokenizer
from motet.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor


class Merge(Setting, frozen=True):
    """A model whose weights are merged from those of others."""

    base: str
    """The model that the differences are added to."""
    add: dict[str, FiniteFloat] = Field(min_length=1)
    """Models with their weight λ."""
    reference: str | None = None
    """What each model's difference is taken from, by default `base`."""

    @property
    def members(self) -> list[str]:
        """All models that it reads."""
        return list(dict.fromkeys([self.base, *self.add, self.reference or self.base]))


def write_merge(folder: Path, base: Path, add: dict[Path, float], reference: Path | None = None) -> None:
    """Writes a Hugging Face folder with the merged weights and the base's configuration and tokenizer.

    Raises:
        RecipeError: models of another shape than the base's, or that cannot be read.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = load_weights(str(base))
        states = {path: _state(path) for path in {*add, reference or base}}
    except (OSError, ValueError) as error:
        raise RecipeError([f"merge: {error}"]) from error
    start = model.state_dict()
    _check_shapes(start, states)
    # A new tensor per name: tied weights share one, which a sum in place would move twice.
    merged = {name: _moved(name, tensor, add, states, reference or base) for name, tensor in start.items()}
    model.load_state_dict(merged)
    model.save_pretrained(folder)
    # The tokenizer with the chat template is a tuned model's: the last one that is added.
    read_tokenizer(str(list(add)[-1])).save_pretrained(folder)


def _moved(
    name: str, start: Tensor, add: dict[Path, float], states: dict[Path, dict[str, Tensor]], reference: Path
) -> Tensor:
    if not start.is_floating_point():
        return start
    moves = [weight * (states[path][name] - states[reference][name]) for path, weight in add.items()]
    return start + sum(moves[1:], moves[0])


def _state(path: Path) -> dict[str, Tensor]:
    model = load_weights(str(path))
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _check_shapes(base: dict[str, Tensor], states: dict[Path, dict[str, Tensor]]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    problems: list[str] = []
    for path, state in states.items():
        other = {name: tuple(tensor.shape) for name, tensor in state.items()}
        unlike = next((name for name in shapes.keys() | other.keys() if shapes.get(name) != other.get(name)), None)
        if unlike is not None:
            problems.append(
                f"merge: {path} has another shape than the base: {unlike} is {other.get(unlike)}, not "
                f"{shapes.get(unlike)}."
            )
    if problems:
        raise RecipeError(problems)
