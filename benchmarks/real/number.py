"""The number that an answer to a GSM8K question ends in (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = r"(?P<sign>[-−]?)\s*\$?\s*(?P<minus>[-−]?)(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)"
# alone on its line: `#### 1. First we add …` is a heading, as untuned models write them
FORM = re.compile(rf"^####\s*{_NUMBER}\s*%?\.?\s*$", re.MULTILINE)
ANY = re.compile(_NUMBER)


def final_number(text: str) -> Decimal | None:
    """The number on the first line `#### NUMBER`, GSM8K's own form; None where there is no such line."""
    match = FORM.search(text)
    return None if match is None else _value(match)


def last_number(text: str) -> Decimal | None:
    """The last number of a text in whatever form: what it amounts to, if its form is not asked for."""
    found = list(ANY.finditer(text))
    return _value(found[-1]) if found else None


def _value(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", ""))
    return -value if match["sign"] or match["minus"] else value
