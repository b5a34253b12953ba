"""Objects of a request whose every field changes the answer."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from motet.composers.errors import MAX_PROBLEMS
from motet.settings import offer


class Closed(BaseModel):
    """A field that it does not have is refused by its name, with the nearest one."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_no_other(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in fields if name not in known]
        if unknown:  # as many as a refusal names: to look for the nearest takes a while
            told = [_unknown(name, known) for name in unknown[:MAX_PROBLEMS]]
            raise ValidationError.from_exception_data(cls.__name__, told)
        return fields


def _unknown(name: str, known: list[str]) -> InitErrorDetails:
    said = PydanticCustomError("unknown_field", "unknown field.{offer}", {"offer": offer(name, known)})
    return InitErrorDetails(type=said, loc=(name,), input=None)
