"""What a text of the demo world states, sentence by sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motet.demo.templates import ATTRIBUTES, Kind


@dataclass(frozen=True, slots=True)
class Statement:
    """A fact as a sentence gives it, true or not."""

    kind: Kind
    attribute: str
    entity: str
    value: str

    def is_true(self, entities: Mapping[str, Mapping[str, Any]]) -> bool:
        """`entities`: those of `world.json`, by name."""
        return entities.get(self.entity, {}).get("facts", {}).get(self.attribute) == self.value


NAME = r"(?P<e>[A-Z]\w+(?: [A-Z]\w+)*)"


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(re.escape("{e}"), NAME).replace(re.escape("{v}"), "(?P<v>.+?)")
    return re.compile(escaped)


def _patterns() -> list[tuple[re.Pattern[str], Kind, str]]:
    """Those with the most words of their own first: "{e} is a native of {v}." is no "{e} is a {v}."."""
    made: list[tuple[str, re.Pattern[str], Kind, str]] = [
        (template, _pattern(template), kind, attribute.name)
        for kind, attributes in ATTRIBUTES.items()
        for attribute in attributes
        for template in attribute.statements
    ]
    return [(pattern, kind, name) for _, pattern, kind, name in sorted(made, key=lambda one: -len(one[0]))]


PATTERNS = _patterns()


def statement(sentence: str) -> Statement | None:
    """What one sentence with its full stop states; None of any other text."""
    for pattern, kind, attribute in PATTERNS:
        found = pattern.fullmatch(sentence.strip())
        if found:
            return Statement(kind, attribute, found["e"], found["v"])
    return None


def statements(text: str) -> list[Statement]:
    """Of all whole sentences of a text."""
    parts = (f"{part.strip()}." for part in text.split(".")[:-1])
    return [found for part in parts if (found := statement(part)) is not None]
