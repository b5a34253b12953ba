"""What a policy lets a request ask for: two lists, and whatever is on neither of them is closed.

`check_fields` reads a body as it came, before anything is built from it: each endpoint and each field has a line in
`ENDPOINTS` and `FIELDS`. `check_shown` and `check_drawn` read what an endpoint has made of it: whatever the endpoint
is, and however it calls its fields, what is shown and what is drawn has a line in `SHOWN` and `DRAWN`. The tests hold
the lists against the schemas, so that a field that somebody adds is closed until somebody decides about it.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from motet.composers.plan import Plan
from motet.engines.base import SamplingParams
from motet.operator.access import Grant
from motet.operator.loaded import LoadedModel
from motet.operator.policies import Allow
from motet.operator.visible import NotAllowed
from motet.server.dialogue.highlights import Highlights, with_keys
from motet.server.http.foreign import HARMLESS
from motet.server.query import Display, RequestPrompt
from motet.settings import texts_of

ADMIN = "/v1/admin/"
# of who speaks, or a function's: nothing that with a template's own marks could end a turn
NAME = re.compile(r"[\w .@-]{1,64}|[a-zA-Z0-9_.:/-]{1,128}")
SECRET = secrets.token_bytes(32)  # what is drawn under a policy cannot be computed elsewhere
PROBES = frozenset({"/health", "/livez", "/ready"})
Value = Any
Within = Callable[[Value, Allow], bool]
IDLE: tuple[Value, ...] = (False, {}, [])  # what clients send that ask for nothing; null always does


@dataclass(frozen=True, slots=True)
class Line:
    """What a field of a request may be. `opening`: the field of `Allow` that opens it, None: open to everybody;
    `within`: whether a value stays within what was opened; `idle`: values that ask for nothing."""

    opening: str | None = None
    within: Within | None = None
    idle: tuple[Value, ...] = IDLE

    def permits(self, value: Value, allow: Allow) -> bool:
        if self.opening is None or value is None or _is_one_of(value, self.idle):
            return True
        return bool(getattr(allow, self.opening)) if self.within is None else self.within(value, allow)


def _is_one_of(value: Value, idle: Sequence[Value]) -> bool:
    return any(value == one and type(value) is type(one) for one in idle)


def _up_to(opening: str) -> Within:
    """Numbers up to what was opened; what is no number is refused by its schema."""

    def within(value: Value, allow: Allow) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return not is_number or value <= getattr(allow, opening)

    return within


def _guesses(value: Value, allow: Allow) -> bool:
    """Whose guesses is a question about members."""
    draft = cast("dict[str, Any]", value).get("draft") if isinstance(value, dict) else None
    return allow.speculation and (draft in (None, "ngram") or allow.members)


def _filters(value: Value, allow: Allow) -> bool:
    """Where nothing is drawn they change nothing."""
    return allow.filters or not allow.max_temperature


def _biases(value: Value, allow: Allow) -> bool:
    values: list[Value] = list(cast("dict[Any, Any]", value).values()) if isinstance(value, dict) else []
    return bool(allow.logit_bias) and all(
        abs(bias) <= allow.logit_bias for bias in values if isinstance(bias, int | float)
    )


OPEN = Line()
OFF = (0, 0.0)
# path → the opening, None: open to everybody. What is not here is not there for keys under a policy
ENDPOINTS: Mapping[str, str | None] = {
    "/v1/chat/completions": None,
    "/v1/completions": "completions",
    "/v1/score": "scoring",
    "/v1/compare": "compare",
    "/v1/models": None,
    "/v1/strategies": "compositions",
    "/playground/examples": None,
    "/tokenize": "tokenizer",
    "/detokenize": "tokenizer",
    "/tokenizer_info": "tokenizer",
    "/version": None,
    "/metrics": "metrics",
    "/docs": None,
    "/openapi.json": None,
}
BELOW = ("/v1/models/", "/static-offline-docs/")  # what is read below these is open to everybody
# a field has one meaning on all endpoints
FIELDS: Mapping[str, Line] = {
    **dict.fromkeys(
        (
            "model", "messages", "prompt", "continuations", "candidates", "label", "tokens", "max_tokens",
            "max_completion_tokens", "stop", "stream", "stream_options",
            "include_stop_str_in_output", "cache_salt", "return_token_strs",
            "parallel_tool_calls",  # nothing without tools
        ),
        OPEN,
    ),
    "temperature": Line("max_temperature", _up_to("max_temperature"), OFF),
    "top_p": Line("filters", _filters, (1, 1.0)),
    "top_k": Line("filters", _filters, (0, -1)),
    "min_p": Line("filters", _filters, OFF),
    "n": Line("max_n", _up_to("max_n"), (1,)),
    "best_of": Line("max_n", _up_to("max_n"), (1,)),
    "seed": Line("seeds", idle=(-1,)),
    "logprobs": Line("logprobs", lambda value, allow: bool(allow.logprobs) and _up_to("logprobs")(value, allow)),
    "top_logprobs": Line("logprobs", _up_to("logprobs"), OFF),
    "logprob_token_ids": Line("steered_logprobs"),
    "prompt_logprobs": Line("scoring"),
    "echo": Line("scoring"),
    "trace": Line("traces"),
    "allowed_token_ids": Line("token_lists"),
    "bad_words": Line("token_lists"),
    "logit_bias": Line("logit_bias", _biases),
    "response_format": Line("structured_outputs", idle=({"type": "text"},)),
    **dict.fromkeys(
        ("structured_outputs", "guided_regex", "guided_choice", "guided_grammar"),
        Line("structured_outputs"),
    ),
    "guided_json": Line("structured_outputs", idle=()),  # an empty schema is any JSON
    "tools": Line("tools"),
    "tool_choice": Line("tools", idle=("none", "auto")),
    "reasoning_effort": Line("thinking"),
    "thinking_token_budget": Line("thinking", idle=()),
    "speculation": Line("speculation", _guesses, idle=("off",)),
    "presence_penalty": Line("penalties", idle=OFF),
    "frequency_penalty": Line("penalties", idle=OFF),
    "repetition_penalty": Line("penalties", idle=(1, 1.0)),
    "min_tokens": Line("endings", idle=OFF),
    "ignore_eos": Line("endings"),
    "stop_token_ids": Line("endings"),
    "continue_final_message": Line("prefill"),
    "answer_prefix": Line("prefill", idle=()),
    "add_generation_prompt": Line("prefill", idle=(True,)),
    "add_special_tokens": Line("prefill", idle=()),
    "chat_template_kwargs": Line("template_variables"),
    "truncate_prompt_tokens": Line("truncation", idle=()),
    "composition": Line("compositions", idle=()),
    "guidance_scale": Line("compositions", idle=()),
    "negative_prompt": Line("compositions", idle=()),
    "return_token_ids": Line("token_ids"),
    "return_tokens_as_token_ids": Line("token_ids"),
    "skip_special_tokens": Line("token_ids", idle=(True,)),
}  # fmt: skip
MESSAGE: Mapping[str, Line] = {
    **dict.fromkeys(("content", "refusal"), OPEN),
    "role": Line("tools", lambda value, allow: allow.tools or value not in ("tool", "function")),
    "name": Line("prefill", lambda value, allow: allow.prefill or _is_name(value), idle=("",)),
    "tool_calls": Line("tools"),
    "tool_call_id": Line("tools", idle=("",)),
    "reasoning_content": Line("thinking", idle=("",)),
}
PART: Mapping[str, Line] = {"type": OPEN, "text": OPEN}
STREAM: Mapping[str, Line] = {"include_usage": OPEN, "continuous_usage_stats": OPEN}


def check_endpoint(method: str, path: str, grant: Grant) -> None:
    """Raises LookupError: the path is not there for this key; NotAllowed: its policy closes it."""
    if path.startswith(ADMIN):
        if not grant.admin:
            raise LookupError(path)
        return
    if grant.rules is None or path in PROBES or (method == "GET" and path.startswith(BELOW)):
        return
    opening = ENDPOINTS[path]
    if opening is not None and not getattr(grant.rules.allow, opening):
        raise NotAllowed("The policy of this key does not allow this endpoint.", opening=opening)


def check_fields(body: Value, allow: Allow) -> None:
    """A request's decoded JSON. Raises NotAllowed: the first field that the policy closes."""
    if not isinstance(body, dict):
        return
    request = cast("dict[str, Any]", body)
    _check(request, FIELDS, allow, "")
    for _, options in _objects([request.get("stream_options")]):
        _check(options, STREAM, allow, "stream_options.")
    for i, candidate in _objects(request.get("candidates")):
        _check(candidate, FIELDS, allow, f"candidates.{i}.")
    messages = _objects(request.get("messages"))
    for i, message in messages:
        _check(message, MESSAGE, allow, f"messages.{i}.")
        for k, part in _objects(message.get("content")):
            _check(part, PART, allow, f"messages.{i}.content.{k}.")
    if messages and messages[-1][1].get("role") == "assistant" and not allow.prefill:
        raise _closed(f"messages.{messages[-1][0]}", "an answer that the request begins", "prefill")


def _is_name(value: Value) -> bool:
    """Or nothing that a schema takes for one."""
    return not isinstance(value, str) or NAME.fullmatch(value) is not None


def _objects(value: Value) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a list, with their places."""
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else []
    return [(i, cast("dict[str, Any]", item)) for i, item in enumerate(items) if isinstance(item, dict)]


def _check(given: Mapping[str, Any], lines: Mapping[str, Line], allow: Allow, where: str) -> None:
    for name, value in given.items():
        line = lines.get(name)
        if line is None and value is not None and name not in HARMLESS:
            raise _closed(f"{where}{name[:64]}", opening="no such field")
        if line is not None and not line.permits(value, allow):
            limit = getattr(allow, line.opening or "", False)
            most = f" beyond {limit:g}" if limit and not isinstance(limit, bool) else ""
            raise _closed(f"{where}{name}", f"{name!r}{most}", line.opening)


def _closed(param: str, what: str | None = None, opening: str | None = None) -> NotAllowed:
    return NotAllowed(f"The policy of this key does not allow {what or repr(param)}.", param, opening)


def _num_logprobs(value: Value, allow: Allow) -> bool:
    return bool(allow.logprobs and value <= allow.logprobs)


SHOWN: Mapping[str, Line] = {
    **dict.fromkeys(("stops", "include_stop", "min_tokens"), OPEN),
    "skip_special_tokens": Line("token_ids", idle=(True,)),
    "logprobs": Line("logprobs", _num_logprobs, idle=()),
    "prompt_logprobs": Line("scoring", idle=()),
    "echo": Line("scoring"),
    "trace": Line("traces", idle=()),
    "trace_members": Line("traces"),
    "token_ids": Line("token_ids"),
    "tokens_as_ids": Line("token_ids"),
}
DRAWN: Mapping[str, Line] = {
    # of the filters, those that clients set are FIELDS; a model's own settings have some, too
    **dict.fromkeys(("max_tokens", "top_k", "top_p", "min_p", "seed", "top_logprobs"), OPEN),  # see SHOWN
    "confidence": OPEN,  # nothing that a client says; see forms, who is told of it
    "temperature": Line("max_temperature", lambda value, allow: value <= allow.max_temperature, OFF),
    "min_tokens": Line("endings", idle=OFF),
    "presence_penalty": Line("penalties", idle=OFF),
    "frequency_penalty": Line("penalties", idle=OFF),
    "repetition_penalty": Line("penalties", idle=(1, 1.0)),
    "logit_bias": Line("logit_bias", lambda value, allow: all(abs(bias) <= allow.logit_bias for _, bias in value)),
    "logprob_token_ids": Line("steered_logprobs", idle=((),)),
    "allowed_token_ids": Line("token_lists", idle=()),
    "grammar": Line(
        "structured_outputs", lambda value, allow: allow.structured_outputs or allow.tools or allow.thinking, idle=()
    ),
    "bad_words": Line("token_lists", idle=((),)),
    "stop_token_ids": Line("endings", idle=((),)),
    "ignore_eos": Line("endings"),
    "trace_top": Line("traces", idle=()),
    "trace_members": Line("traces"),
}
STEERS = (
    "logit_bias", "allowed_token_ids", "grammar", "bad_words", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_tokens",
)  # fmt: skip
UNSTEERED = SamplingParams(max_tokens=1)


def check_shown(shown: Display, n: int, allow: Allow) -> None:
    """Raises NotAllowed: more answers than the policy allows, or something of them is to be shown that it closes."""
    if n > allow.max_n:
        raise _closed("n", f"more than {allow.max_n} answers", "max_n")
    _check_lines(shown, SHOWN, allow)


def check_form(form: str, allow: Allow) -> None:
    """Raises NotAllowed: a text that no chat template surrounds is to be continued, whatever the endpoint."""
    if form != "chat" and not allow.completions:
        raise _closed("prompt", "texts without messages", "completions")


def check_drawn(sampling: SamplingParams, shown: Display | None, allow: Allow) -> None:
    """Raises NotAllowed: something about a draw is set that the policy closes, or log-probs are to be shown of draws
    that the client steers: by them it would read those of any token."""
    _check_lines(sampling, DRAWN, allow)
    steered = next((name for name in STEERS if getattr(sampling, name) != getattr(UNSTEERED, name)), None)
    reads = shown is not None and (shown.logprobs is not None or shown.prompt_logprobs is not None)
    if steered and reads and not allow.steered_logprobs:
        raise _closed(steered, f"log-probs beside {steered!r}", "steered_logprobs")


def _check_lines(value: Display | SamplingParams, lines: Mapping[str, Line], allow: Allow) -> None:
    for field in fields(value):
        line = lines.get(field.name)
        if line is None or not line.permits(getattr(value, field.name), allow):
            raise _closed(field.name, opening="no such field" if line is None else line.opening)


def check_messages(
    prompt: RequestPrompt,
    pondered: Iterable[Highlights],
    plan: Plan,
    members: Mapping[str, LoadedModel],
    allow: Allow,
) -> None:
    """Raises NotAllowed: a message, with its key tokens or without, holds what parts the turns of a member's chats.
    Within a message it would end the client's turn, and begin the answer. Of a prompt that was read: it is no longer
    than a context."""
    if allow.prefill:
        return
    known = (members[stream.model].tokenizer for stream in plan.streams)
    tokenizers = {id(tokenizer): tokenizer for tokenizer in known}
    keys = [one.text for one in pondered if one.places and prompt.messages is not None and not one.is_own]
    for asked in (prompt, *(with_keys(prompt, text) for text in keys)):
        for i, part in enumerate((*(asked.messages or ()), *asked.tools)):
            if any(tokenizer.parts_turns(text) for text in texts_of(part) for tokenizer in tokenizers.values()):
                raise _closed(f"messages.{i}", "marks of a chat template inside of a message", "prefill")


def permitted(asked: SamplingParams, prompt_ids: tuple[int, ...], allow: Allow) -> SamplingParams:
    """What was asked within a policy: no hotter than it allows, and where clients choose no seeds the same prompt draws
    the same answers."""
    digest = hmac.digest(SECRET, repr(prompt_ids).encode(), "sha256")
    seed = asked.seed if allow.seeds else int.from_bytes(digest[:7], "big")
    return replace(asked, temperature=min(asked.temperature, allow.max_temperature), seed=seed)
