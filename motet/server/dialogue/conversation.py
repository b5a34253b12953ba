"""Messages as one member reads them: tools, calls and thoughts in its template's own way, or in words where that has
none: those of the member that leads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from motet.composers.plan import Plan
from motet.models.chat_template import ChatTemplate
from motet.models.thoughts import ThinkTags
from motet.models.tool_calls import SHORT_ID
from motet.models.tool_formats import ToolFormat
from motet.operator.loaded import LoadedModel
from motet.server.http.errors import ApiError, invalid

Turn = Mapping[str, Any]
ON_TOOLS = (
    "You may call functions. Each is described by one of these lines:\n{tools}\n"
    "To call some, answer with nothing but a call for each, written like this:\n{call}"
)
RESULT = "<tool_response>\n{}\n</tool_response>"  # as Qwen and Hermes show it


@dataclass(frozen=True)
class Dialect:
    """The format of calls, with whether one turn holds one call at most, and the tags of thoughts; None where no member
    that leads has any. `thinker` is the stream whose tags they are."""

    calls: ToolFormat | None = None
    is_single: bool = False
    tags: ThinkTags | None = None
    thinker: int = 0


def dialect_of(plan: Plan, members: Mapping[str, LoadedModel]) -> Dialect:
    """The base's words, as the operator or its own template has them; where it has none, those of the first member that
    the composition is drawn to."""
    leaders = [(k, members[stream.model]) for k, stream in enumerate(plan.streams) if k == 0 or stream.weight > 0]
    caller = next((member for _, member in leaders if member.tool_format), None)
    thinker, tags = next(((k, member.think_tags) for k, member in leaders if member.think_tags), (0, None))
    if caller is None:
        return Dialect(tags=tags, thinker=thinker)
    return Dialect(caller.tool_format, caller.calls_once, tags, thinker)


@dataclass(frozen=True)
class Conversation:
    """The messages with the tools that may be called now, as templates read them. `dialect` has the words for members
    whose templates have none of their own."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    dialect: Dialect = field(default_factory=Dialect)

    def read_by(
        self, template: ChatTemplate | None, *, in_words: bool = True
    ) -> tuple[list[dict[str, Any]], tuple[Mapping[str, Any], ...]]:
        """The messages and the tools that the template renders; None is a model that reads plain text. `in_words`:
        tools are described where the template cannot.

        Raises:
            ApiError: 400, calls, tools or thoughts that neither the template nor anything else has words for, or a name
                that the template does not show.
        """
        for place, turn in enumerate(self.turns):
            self._check_name(place, turn, template)
        turns = [self._with_thought(place, turn, template) for place, turn in enumerate(self.turns)]
        style = None if template is None else template.calls
        if style is None:
            turns = list(self._in_words(turns))
        else:
            is_short = style.format is not None and style.format.short_ids
            turns = [
                _with_calls(place, turn, as_objects=style.as_objects, is_short=is_short)
                for place, turn in enumerate(turns)
            ]
        if not self.tools or (template is not None and template.takes_tools):
            return turns, self.tools
        if not in_words:
            return turns, ()
        return _instructed(turns, self._instruction(), template is None or template.takes_system), ()

    def _check_name(self, place: int, turn: Turn, template: ChatTemplate | None) -> None:
        """Raises ApiError: 400, a name that this member would not see, where it tells participants of one role apart.
        That of the only one in its role tells nothing, and many clients send it; a function's is in the call that it
        answers; one that begins the content is seen."""
        role, name = turn["role"], turn.get("name")
        if name is None or (template is not None and role in template.named_roles):
            return
        if role == "tool":
            is_told = name in self._called_names
        else:
            is_told = self._participants[role] == {name} or turn["content"].startswith(name)
        if is_told:
            return
        others = sorted(repr(other) for other in self._participants[role] - {name, None})
        beside = f"{name!r} beside {', '.join(others) or 'turns without a name'}"
        field = f"messages.{place}.name"
        raise invalid(
            f"{field}: the chat template of a member shows no names in the role {role!r}, which {beside} needs. Begin "
            f'the content with it ("{name}: …"), or leave it out.',
            field,
            public=f"{field}: names are not shown here. Begin the content with it, or leave it out.",
        )

    @cached_property
    def _participants(self) -> Mapping[str, set[str | None]]:
        """The names in every role; None is a turn that has none."""
        found: dict[str, set[str | None]] = {}
        for turn in self.turns:
            found.setdefault(turn["role"], set()).add(turn.get("name"))
        return found

    @cached_property
    def _called_names(self) -> frozenset[str]:
        calls = (call for turn in self.turns for call in turn.get("tool_calls", ()))
        return frozenset(call["function"]["name"] for call in calls)

    def _with_thought(self, place: int, turn: Turn, template: ChatTemplate | None) -> dict[str, Any]:
        shown = dict(turn)
        if "reasoning_content" not in turn or (template is not None and template.knows("reasoning_content")):
            return shown
        if self.dialect.tags is None:
            field = f"messages.{place}.reasoning_content"
            raise invalid(f"{field}: no member of this composition writes thoughts; leave it out.", field)
        shown["content"] = self.dialect.tags.around(shown.pop("reasoning_content"), turn["content"])
        return shown

    def _in_words(self, turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Calls as text of the assistant, what tools answered as one message of the user."""
        results: list[str] = []
        for place, turn in enumerate(turns):
            if turn["role"] == "tool":
                self._words(f"messages.{place}.role")
                results.append(RESULT.format(turn["content"]))
                continue
            if results and turn["role"] == "user":
                turn = {**turn, "content": "\n".join([*results, turn["content"]])}
            elif results:
                yield {"role": "user", "content": "\n".join(results)}
            results.clear()
            yield self._called(place, turn) if "tool_calls" in turn else turn
        if results:
            yield {"role": "user", "content": "\n".join(results)}

    def _called(self, place: int, turn: dict[str, Any]) -> dict[str, Any]:
        form = self._words(f"messages.{place}.tool_calls")
        calls = [(call["function"]["name"], call["function"]["arguments"] or "{}") for call in turn["tool_calls"]]
        said = [text for text in (turn["content"], form.written(calls)) if text]
        return {"role": turn["role"], "content": "\n".join(said)}

    def _instruction(self) -> str:
        tools = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools)
        call = self._words("tools").written([("NAME", '{"ARGUMENT": VALUE}')])
        return ON_TOOLS.format(tools=tools, call=call)

    def _words(self, field: str) -> ToolFormat:
        if self.dialect.calls is None:
            raise no_tools(field)
        return self.dialect.calls


def no_tools(field: str) -> ApiError:
    """The refusal of tools that nobody has words for."""
    return invalid(
        f"{field}: the chat template of this model knows no tools. The operator can give it a format of calls: "
        "models.NAME.tool_call_parser in the operator's file.",
        field,
        "tools_unsupported",
    )


def _with_calls(place: int, turn: dict[str, Any], *, as_objects: bool, is_short: bool) -> dict[str, Any]:
    shown = dict(turn)
    if "tool_call_id" in turn and is_short:
        shown["tool_call_id"] = _short_id(turn["tool_call_id"])
    if "tool_calls" in turn:
        shown["tool_calls"] = [
            _call(call, f"messages.{place}.tool_calls.{number}", as_objects=as_objects, is_short=is_short)
            for number, call in enumerate(turn["tool_calls"])
        ]
    return shown


def _call(call: Mapping[str, Any], field: str, *, as_objects: bool, is_short: bool) -> dict[str, Any]:
    function = dict(call["function"])
    if as_objects:
        function["arguments"] = _arguments(function["arguments"], f"{field}.function.arguments")
    return {**call, "id": _short_id(call["id"]) if is_short else call["id"], "function": function}


def _arguments(text: str, field: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise invalid(f"{field}: it is no JSON: {error}", field) from error
    if not isinstance(value, dict):
        raise invalid(f"{field}: arguments are a JSON object.", field)
    return cast("dict[str, Any]", value)


def _short_id(own: str) -> str:
    """The same nine letters and digits for the same id, where a family's template refuses others."""
    is_short = len(own) == SHORT_ID and own.isascii() and own.isalnum()
    return own if is_short else hashlib.sha256(own.encode()).hexdigest()[:SHORT_ID]


def _instructed(turns: list[dict[str, Any]], instruction: str, takes_system: bool) -> list[dict[str, Any]]:
    """The instruction behind the system's message, a new one where there is none; else in the first message."""
    first = turns[0] if turns else {"role": "user", "content": ""}
    if first["role"] == "system" or not takes_system:
        return [{**first, "content": "\n\n".join(filter(None, (first["content"], instruction)))}, *turns[1:]]
    return [{"role": "system", "content": instruction}, *turns]
