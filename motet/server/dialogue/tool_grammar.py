"""The grammar of an answer that may, or must, call functions: free until a call begins, then held to the function's
schema. In llguidance's Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from motet.engines.grammars import Grammars
from motet.models.tool_formats import ToolFormat
from motet.operator.loaded import LoadedModel
from motet.server.dialogue.tools import Function, Offer, Tool
from motet.server.structured import json_rule

MOST_CALLS = 16  # in one answer: a small model may not come to an end by itself
SPACE = "SPACE"
ANY = "/(.|\\n)*/"
START = re.compile(r"^start:", re.MULTILINE)


class CallGrammar:
    """Writes the grammar of calls in one format. Called with the grammar that the answer keeps to where it calls
    nothing, or None, it writes that of the whole.

    Args:
        base: whose tokens spell the answer. What is a token of its own there is written as that token; grammars know
            no other spelling of it.
        offer: what may be called, and whether it must.
        is_single: the template takes one call in a turn at most.
    """

    def __init__(self, form: ToolFormat, base: LoadedModel, offer: Offer, *, is_single: bool) -> None:
        self._form = form
        self._offer = offer
        self._several = offer.several and not is_single
        ids = {word: base.tokenizer.added_id(word) for word in form.marks}
        width = base.info.vocab_size
        self._tokens = {word: token for word, token in ids.items() if token is not None and token < width}

    def __call__(self, text: str | None) -> str:
        """Raises ValueError: a schema that cannot be written down."""
        if self._offer.must:
            return f"start: {self._mark()} calls\n{self._rules()}"
        if text is not None:
            return f"start: text | {self._mark()} calls\n{START.sub('text:', text)}\n{self._rules()}"
        return f"{self._free()}\n{self._rules()}"

    def _free(self) -> str:
        """Any text, with calls behind it."""
        if self._form.is_bare:
            return f"start: TEXT | {self._mark()} calls\nTEXT: {self._no_call()}"
        if self._words[0] in self._tokens:
            return f"start: TEXT | TEXT {self._mark()} calls\nTEXT: {ANY}"
        return f"start: TEXT | lead calls\nlead[lazy]: {ANY} {json.dumps(self._words[0])}\nTEXT: {ANY}"

    @property
    def _words(self) -> list[str]:
        return (self._form.section + self._form.opens).split()

    def _mark(self) -> str:
        """What says that calls begin."""
        if self._form.is_bare:
            return f"({self._spelled(self._form.tag)})?" if self._form.tag in self._tokens else ""
        return self._spelled(self._words[0])

    def _rules(self) -> str:
        form = self._form
        opening = form.section + form.opens
        rest = opening[len(self._words[0]) :] if opening else ""
        more = f"more{{0,{MOST_CALLS - 1}}}" if self._several else ""
        functions = [tool.function for tool in self._offer.callable]
        calls = " | ".join(f"call_{number}" for number in range(len(functions)))
        lines = [
            f"calls: {self._spelled(rest)} call {self._spelled(form.closes)} {more} {self._spelled(form.ends)}",
            f"call: {calls}",
            *(line for number, function in enumerate(functions) for line in self._call(number, function)),
            f"{SPACE}: /[ \\n]{{0,2}}/",
        ]
        if self._several:
            around = f"{self._spelled(form.between + form.opens)} call {self._spelled(form.closes)}"
            lines.append(f"more: {around}")
        return "\n".join(lines) + "\n"

    def _call(self, number: int, function: Function) -> Iterator[str]:
        if self._form.separator:
            separator = self._spelled(self._form.separator)
            yield f"call_{number}: {json.dumps(function.name)} {separator} arguments_{number}"
        else:
            yield f'call_{number}: /{self._head(re.escape(function.name))}/ arguments_{number} {SPACE} "}}"'
        yield f"arguments_{number}: {json_rule(function.schema_of_arguments)}"

    def _head(self, name: str) -> str:
        """A regular expression of a call up to its arguments."""
        name = name.replace("/", "\\/")
        return f'\\{{[ \\n]?"name": ?"{name}",[ \\n]?"{self._form.key}": ?'

    def _no_call(self) -> str:
        """Text that does not begin as a call does."""
        names = "|".join(re.escape(tool.function.name) for tool in self._offer.callable)
        return f"{ANY} & ~/{self._head(f'({names})')}(.|\\n)*/"

    def _spelled(self, text: str) -> str:
        """Words with their tokens, and any white space or none where the text has some."""
        parts = re.findall(r"\s+|\S+", text)
        return " ".join(SPACE if part.isspace() else self._word(part) for part in parts)

    def _word(self, word: str) -> str:
        return f"<[{self._tokens[word]}]>" if word in self._tokens else json.dumps(word)


async def held(offer: Offer, grammars: Grammars) -> Offer:
    """The offer, with any object for the arguments of loose functions whose schema no grammar can hold."""
    return replace(offer, callable=tuple([await _held(tool, grammars) for tool in offer.callable]))


async def _held(tool: Tool, grammars: Grammars) -> Tool:
    if tool.function.strict:
        return tool
    try:
        await grammars.compiled(f"start: {json_rule(tool.function.schema_of_arguments)}")
    except ValueError:
        return tool.model_copy(update={"function": tool.function.model_copy(update={"parameters": {"type": "object"}})})
    return tool
