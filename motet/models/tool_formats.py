"""How families write calls of tools, as data: `tool_calls` reads what they wrote, grammars hold them to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["hermes", "llama3_json", "mistral", "mistral_v11", "json"]


@dataclass(frozen=True)
class ToolFormat:
    """The text around and between calls. Spaces and line breaks in it may be left out by who writes.

    A call is a JSON object with `name` and `key`; or, where there is a `separator`, the bare name, the separator and
    the arguments. A format whose calls nothing opens can only stand at the beginning of an answer.
    """

    name: FormatName
    section: str = ""  # before the first call
    opens: str = ""  # before each
    closes: str = ""  # behind each
    between: str = ""
    ends: str = ""  # behind the last
    key: Literal["arguments", "parameters"] = "arguments"
    separator: str = ""
    tag: str = ""  # may stand before everything, and says nothing
    short_ids: bool = False  # templates of the family refuse ids that have not nine letters and digits

    @property
    def is_bare(self) -> bool:
        """Whether nothing but the call itself says that it is one."""
        return not (self.section or self.opens)

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that stand around calls, as words: a tokenizer may have tokens of its own for them."""
        parts = (self.tag, self.section, self.opens, self.separator, self.closes, self.between, self.ends)
        return tuple(dict.fromkeys(word for part in parts for word in part.split()))

    def written(self, calls: Iterable[tuple[str, str]]) -> str:
        """The text of (name, arguments as JSON) pairs."""
        return self.section + self.between.join(self._call(name, said) for name, said in calls) + self.ends

    def _call(self, name: str, arguments: str) -> str:
        if self.separator:
            return f"{self.opens}{name}{self.separator}{arguments}{self.closes}"
        return f'{self.opens}{{"name": {json.dumps(name)}, "{self.key}": {arguments}}}{self.closes}'


TOOL_FORMATS: dict[str, ToolFormat] = {
    fmt.name: fmt
    for fmt in (
        # Qwen 2.5 and 3, Hermes
        ToolFormat("hermes", opens="<tool_call>\n", closes="\n</tool_call>", between="\n"),
        # Mistral's up to 2411, whose templates write a list
        ToolFormat("mistral", section="[TOOL_CALLS] [", between=", ", ends="]", short_ids=True),
        # Mistral's since: https://docs.mistral.ai, tokenizer v11
        ToolFormat("mistral_v11", opens="[TOOL_CALLS]", separator="[ARGS]", short_ids=True),
        # Llama 3.1 to 3.3
        ToolFormat("llama3_json", between="; ", key="parameters", tag="<|python_tag|>"),
        # what any model can be asked to write
        ToolFormat("json", between="\n"),
    )
}
