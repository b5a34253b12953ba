"""Endpoints and parameters of OpenAI's and vLLM's APIs that this server does not have.

A parameter that would change the answer is refused by its name, any other is ignored with a log line; an endpoint
answers 400 and says what to use, which helps more than a 404.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from motet.composers.errors import show
from motet.server.errors import invalid
from motet.server.schemas import Body

log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False)
ENDPOINTS = (
    "/v1/responses",
    "/v1/embeddings",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/v1/batches",
    "/v1/files",
)

# name → values that ask for nothing; null always does
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),  # of bodies that draw nothing, and of single candidates
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_whitespace_pattern": (),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "echo": (False,),  # of chats: completions have it
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "suffix": ("",),
    "prompt_embeds": (),
    "documents": ([],),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "chat_template": (),
    "thinking_token_budget": (),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
    "dry_multiplier": (0, 0.0),
    "xtc_probability": (0, 0.0),
    "lora_request": (),
}
HINTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        "Chat completions and completions take it, and comparisons beside their candidates.",
    ),
    "guided_whitespace_pattern": "Write structured_outputs.whitespace_pattern.",
    "chat_template": "A request carries no code: set the template in the model's folder.",
}


def check_extras(body: Body) -> None:
    """Refuses what would change the answer and logs the names (never the values) of what is ignored.

    Raises:
        ApiError: 400 naming the parameter.
    """
    extras = body.model_extra or {}
    for name, value in extras.items():
        if name in REFUSED and value is not None and not _asks_nothing(value, REFUSED[name]):
            hint = HINTS.get(name, "Leave it out.")
            raise invalid(f"{name!r} is not supported by this server. {hint}", name, "unsupported_parameter")
    _check_best_of(extras, getattr(body, "n", None) or 1)
    ignored = sorted(name[:64] for name in extras if name not in REFUSED and name != "best_of")
    if ignored:
        log.info("ignored request fields: %s", ", ".join(repr(name) for name in ignored[:32]))


def _asks_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    return any(value == one and type(value) is type(one) for one in harmless)


def _check_best_of(extras: Mapping[str, Any], n: int) -> None:
    best_of = extras.get("best_of")
    if best_of is not None and best_of != n:
        raise invalid(
            f"'best_of' {show(best_of)} is not supported: only n of n ({n}).", "best_of", "unsupported_parameter"
        )


async def refuse_endpoint() -> None:
    raise invalid(
        "This endpoint is not supported. Use /v1/chat/completions or /v1/completions.", code="unsupported_endpoint"
    )


for path in ENDPOINTS:
    router.add_api_route(path, refuse_endpoint, methods=["GET", "POST"])
