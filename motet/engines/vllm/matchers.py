"""The rows' grammars in a worker: compiled here once more, from their text and the tokenizer of the row's base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from motet.engines.base import Matcher
from motet.engines.grammars import Grammars
from motet.engines.vllm.table import Row

Source = tuple[str, str | None]  # folder or hub id, and revision


class Matchers:
    """Finds the matcher of a row; a tokenizer is read when a row first needs it.

    Args:
        members: name → {"path", "revision", "tokenizer"}, as in the composite's configuration.
        vocab_size: width of the masks.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]] | None = None, vocab_size: int = 0) -> None:
        self._sources = {name: _source(member) for name, member in (members or {}).items()}
        self._vocab_size = vocab_size
        self._grammars: dict[Source, Grammars] = {}
        self._of_rows: WeakKeyDictionary[Row, Matcher] = WeakKeyDictionary()

    def of(self, row: Row) -> Matcher | None:
        """None for a row without a grammar.

        Raises:
            GrammarError: it cannot be compiled here.
        """
        if not row.spec.grammar:
            return None
        if row not in self._of_rows:
            compiled = self._compiler(row.spec.plan.streams[0].model).compile(row.spec.grammar)
            self._of_rows[row] = compiled.start(row.spec.ends)
        return self._of_rows[row]

    def _compiler(self, base: str) -> Grammars:
        from motet.models.tokenizer import Tokenizer

        source = self._sources[base]
        if source not in self._grammars:
            self._grammars[source] = Grammars(Tokenizer.load(*source), self._vocab_size, is_checked=True)
        return self._grammars[source]


def _source(member: Mapping[str, Any]) -> Source:
    path, revision = member.get("tokenizer") or (member["path"], member.get("revision"))
    return str(path), revision
