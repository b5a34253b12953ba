"""Evaluation recipes and their parts are validated as a whole, all problems reported together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from motet.settings import Setting, SettingsError, sentences


class RecipeError(SettingsError):
    """An evaluation that cannot be run."""


S = TypeVar("S", bound=Setting)


def validated(kind: type[S], tree: Mapping[str, Any]) -> S:
    """`kind` made from decoded YAML.

    Raises:
        RecipeError: all problems; unknown names with what is allowed and the nearest one.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        told = sentences(error.errors(include_url=False), kind, tree, _message)
        raise RecipeError([f"{sentence}." for sentence in told]) from error


def _message(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ")
