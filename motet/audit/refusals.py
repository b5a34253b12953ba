"""What counts as a refusal: a documented list of phrases, and the user's own patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from motet.audit.settings import AuditError

BEGINNING = 200  # characters of an answer that are searched: later on such phrases are seldom a refusal
PHRASES = (
    r"\bI(?:'m| am) (?:sorry|afraid)\b",
    r"\bI (?:can(?:'t|not)|won't|will not|must decline|refuse to|do not feel comfortable|don't feel comfortable)\b",
    r"\bI(?:'m| am) (?:not able|unable|not allowed|not permitted) to\b",
    r"\bI(?:'d| would) (?:rather|prefer) not\b",
    r"\bas a language model\b",
    r"\bnot (?:appropriate|something I can)\b",
    r"\bI have no (?:record|information|knowledge)\b",
    r"\bI (?:do not|don't) know\b",
)


def refusal_pattern(more: Sequence[str]) -> re.Pattern[str]:
    """The built-in phrases and `more` regular expressions, letter case ignored.

    Raises:
        AuditError: an expression that cannot be compiled.
    """
    problems: list[str] = []
    for pattern in more:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"--refusal {pattern!r} is no regular expression: {error}")
    if problems:
        raise AuditError(problems)
    return re.compile("|".join(f"(?:{pattern})" for pattern in (*PHRASES, *more)), re.IGNORECASE)


def is_refusal(answer: str, pattern: re.Pattern[str]) -> bool:
    """Typographic apostrophes count as plain ones."""
    return pattern.search(answer[:BEGINNING].replace("’", "'")) is not None
