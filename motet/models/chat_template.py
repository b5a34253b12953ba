"""What a chat template can say, found by asking it: each is a program of the checkpoint's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from motet.models.thoughts import KNOWN_TAGS, ThinkTags
from motet.models.tool_calls import CallArguments, CallBegin, CallReader, Part
from motet.models.tool_formats import TOOL_FORMATS, ToolFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "Motet"  # what every template must show
PROBED = ("system", "user", "assistant")
ASKED = {"role": "user", "content": PROBE}
NAME, ARGUMENTS, CALL_ID = "motet_probe", {"of": PROBE}, "a1B2c3D4e"
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": PROBE,
        "parameters": {"type": "object", "properties": {"of": {"type": "string", "description": PROBE}}},
    },
}


@dataclass(frozen=True)
class CallStyle:
    """How a template takes calls: arguments as objects or as their text, several in one turn or one at most. `format`
    is what it makes of them, None where no known format reads it."""

    as_objects: bool
    is_single: bool
    format: ToolFormat | None


class ChatTemplate:
    """The template of one tokenizer."""

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        self._hf = hf

    @cached_property
    def source(self) -> str:
        """Its text; of several named ones, all."""
        template: Any = cast(Any, self._hf).chat_template
        if isinstance(template, Mapping):
            return "\n".join(map(str, cast("Mapping[str, Any]", template).values()))
        return str(template or "")

    def knows(self, variable: str) -> bool:
        """Whether it reads a variable of that name (`enable_thinking`), or a message's field (`reasoning_content`)."""
        return variable in self.source

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it reads contents only as lists of parts, `[{"type": "text", "text": ...}]`: such a template (Llama
        Guard 3's, say) walks over a plain text letter by letter, and the text vanishes."""
        return not self._shows([ASKED]) and self._shows([self._asked])

    @cached_property
    def loses_questions(self) -> bool:
        """Whether it renders a user's message without a word of it, in whatever form."""
        return self._rendered([self._asked]) is not None and not self._shows([self._asked])

    def reads_parts(self, role: str) -> bool:
        """Whether it reads that role's contents only as parts; where the probe cannot tell, as it reads the user's."""
        return role in self._in_parts if role in PROBED else self.takes_parts

    @cached_property
    def _in_parts(self) -> frozenset[str]:
        return frozenset(role for role in PROBED if self._needs_parts(role))

    def _needs_parts(self, role: str) -> bool:
        """Whether the role's text vanishes beside the user's, who says another."""
        user = {"role": "user", "content": text_parts("Hello.") if self.takes_parts else "Hello."}
        plain, parts = (
            self._shows([turn, user] if role == "system" else [user, turn])
            for turn in ({"role": role, "content": PROBE}, {"role": role, "content": text_parts(PROBE)})
        )
        return not plain and (parts or self.takes_parts)

    @cached_property
    def takes_system(self) -> bool:
        return self._shows([self._message("system", PROBE), self._message("user", "Hello.")])

    @cached_property
    def named_roles(self) -> frozenset[str]:
        """The roles in which it shows who of several speaks (`name`)."""
        asked, answered = self._asked, self._message("assistant", "Hello.")
        before = {"system": [], "user": [], "assistant": [asked], "tool": [asked, answered]}
        behind = {"system": [asked], "assistant": [asked]}
        shown = {
            role: self._rendered([*turns, {**self._message(role, PROBE), "name": NAME}, *behind.get(role, [])])
            for role, turns in before.items()
        }
        return frozenset(role for role, text in shown.items() if text is not None and NAME in text)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it describes the tools that a request offers."""
        text = self._rendered([self._asked], tools=[TOOL])
        return text is not None and NAME in text

    @cached_property
    def takes_results(self) -> bool:
        """Whether it shows what a tool answered."""
        style = self.calls
        if style is None:
            return False
        result = {"tool_call_id": CALL_ID, "name": NAME, **self._message("tool", "result-of-the-probe")}
        text = self._rendered([self._asked, self._turn(1, style.as_objects), result], tools=[TOOL])
        return text is not None and "result-of-the-probe" in text

    @cached_property
    def calls(self) -> CallStyle | None:
        """How it takes an assistant's calls; None: it does not show them."""
        shown = None
        for as_objects in (True, False):
            text = self._rendered([self._asked, self._turn(1, as_objects)], tools=[TOOL])
            if text is None or NAME not in text:
                continue
            found = self._format_of(text)
            style = CallStyle(as_objects, not self._takes(2, as_objects), found)
            if found is not None:
                return style
            shown = shown or style
        return shown

    @cached_property
    def think_tags(self) -> ThinkTags | None:
        """The tags that it writes or looks for around thoughts."""
        return next((tags for tags in KNOWN_TAGS if tags.end in self.source), None)

    def _format_of(self, text: str) -> ToolFormat | None:
        """The format that reads back the call which the template has written."""
        opened = self._rendered([self._asked], tools=[TOOL], add_generation_prompt=True) or ""
        turn = behind(opened, text)
        return next((form for form in TOOL_FORMATS.values() if _reads_back(form, turn)), None)

    def _takes(self, count: int, as_objects: bool) -> bool:
        text = self._rendered([self._asked, self._turn(count, as_objects)], tools=[TOOL])
        return text is not None and text.count(NAME) >= count

    def _turn(self, count: int, as_objects: bool) -> dict[str, Any]:
        said: Any = ARGUMENTS if as_objects else json.dumps(ARGUMENTS)
        call = {"id": CALL_ID, "type": "function", "function": {"name": NAME, "arguments": said}}
        return {"role": "assistant", "content": "", "tool_calls": [call] * count}

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """The probe's question, in parts where only they are read."""
        return {"role": "user", "content": text_parts(PROBE)} if not self._shows([ASKED]) else ASKED

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": text_parts(text) if self.reads_parts(role) else text}

    def _shows(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        text = self._rendered(messages)
        return text is not None and PROBE in text

    def _rendered(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
        """None where the template refuses."""
        try:
            return str(self._hf.apply_chat_template([dict(one) for one in messages], tokenize=False, **options))
        except Exception:  # a template is the checkpoint's own program
            return None


def text_parts(text: str) -> list[dict[str, str]]:
    """A content as templates that walk over parts read it."""
    return [{"type": "text", "text": text}]


def behind(start: str, text: str) -> str:
    """The text without what it has in common with `start`."""
    pairs = zip(start, text, strict=False)
    return text[next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(start), len(text))) :]


def _reads_back(form: ToolFormat, turn: str) -> bool:
    reader = CallReader(form, {NAME})
    parts = reader.push(turn) + reader.flush()
    names = [part.name for part in parts if isinstance(part, CallBegin)]
    return names == [NAME] and _arguments(parts) == ARGUMENTS


def _arguments(parts: Sequence[Part]) -> Any:
    try:
        return json.loads("".join(part.text for part in parts if isinstance(part, CallArguments)))
    except ValueError:
        return None
