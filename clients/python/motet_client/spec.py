"""What compositions are made of: dataclasses that become the JSON of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An object of a composition. `strategy` is its name in the JSON, where it is a strategy."""

    strategy: ClassVar[str | None] = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON: all values, those of the defaults too, so that it means the same wherever it is read; what may be
        left out and is None is left out."""
        tag = {} if self.strategy is None else {"strategy": self.strategy}
        values = ((field, getattr(self, field.name)) for field in fields(self))
        # None is absent where that is the default; elsewhere it says something, "no mask" for example
        said = {field.name: value for field, value in values if not (field.default is None and value is None)}
        return tag | {name.removesuffix("_"): _plain(value) for name, value in said.items()}


def _plain(value: object) -> Any:
    if isinstance(value, Spec):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return value
