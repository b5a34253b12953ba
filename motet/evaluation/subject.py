"""What is evaluated: a model, a named composition, a composition of the recipe's own, or a prompt around one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from motet.settings import Setting

Pair = tuple[str, str]  # (question, answer)


class Subject(Setting, frozen=True):
    """A model, a composition, or a prompt around one; a bare string is a model id.

    `instructions` and `examples` make a prompt-only baseline in the manner of URIAL (Lin et al. 2023,
    arXiv:2312.01552).
    """

    model: str | None = None
    """A model or a named composition; beside `composition`, its base."""
    composition: dict[str, Any] | None = None
    """An object as in a request."""
    instructions: str | None = None
    """A system message."""
    examples: Annotated[int, Field(ge=0)] = 0
    """So many answered questions before the asked one, from the recipe's `examples` file."""

    @model_validator(mode="after")
    def _something(self) -> Subject:
        if self.model is None and self.composition is None:
            raise ValueError("give a model, a composition, or both")
        return self

    @property
    def target(self) -> dict[str, Any]:
        """The fields of a request body that say what answers."""
        named = {"model": self.model, "composition": self.composition}
        return {name: value for name, value in named.items() if value is not None}

    def messages(self, question: str, shots: Sequence[Pair] = ()) -> list[tuple[str, str]]:
        """A chat that ends in the question, behind the subject's own instructions and examples."""
        system = [("system", self.instructions)] if self.instructions else []
        return [*system, *turns(shots[: self.examples]), ("user", question)]


def turns(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Answered questions as messages."""
    return [turn for question, answer in pairs for turn in (("user", question), ("assistant", answer))]


def _named(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


AnySubject = Annotated[Subject, BeforeValidator(_named)]
