"""The demo's operator file: its models, and the compositions that the scoreboard measures.

Strengths were fixed in advance: α = β = 1 by definition; the unlearning weight and the courtesy's β, which has to
overcome a base that never was courteous, on the families of seeds 100 to 102, which are not reported.
"""

from __future__ import annotations

from typing import Any

import yaml

UNLEARN_WEIGHT = 1.2
UNLEARN_FILTER = 0.01

HEADER = """\
# The demo family: serve it with `motet serve models.yaml`. Paths are relative to this file.
# Every composition is also a model id in /v1/models.
"""

MODELS = {
    "large": "plain",
    "small": "plain",
    "large-chat": "chat",
    "small-chat": "chat",
    "small-courteous": "chat",
    "retain-only": "chat",
    "forget-assistant": "chat",
}
# The family has never seen a tool, nor JSON: it is not told of tools, and what it writes is closed in time.
TOOLS = {"tool_call_parser": "json", "describe_tools": False, "close_json": True}


def _unasked(model: str) -> dict[str, str]:
    """The model reads nothing but what has been generated: it never learned the chat form."""
    return {"model": model, "prompt": ""}


def _asked(model: str) -> dict[str, str]:
    """The model reads the question in chat form, whether it learned that form or not."""
    return {"model": model, "template": "chat"}


COMPOSITIONS: dict[str, dict[str, Any]] = {
    "large-proxy": {
        "base": _unasked("large"),
        "strategy": "proxy_tuning",
        "expert": "small-chat",
        "antiexpert": _unasked("small"),
        "alpha": 1.0,
    },
    "large-proxy-one-prompt": {
        "base": _asked("large"),
        "strategy": "proxy_tuning",
        "expert": _asked("small-chat"),
        "antiexpert": _asked("small"),
        "alpha": 1.0,
    },
    "small-eft-down": {
        "base": _unasked("small"),
        "strategy": "eft",
        "tuned": "large-chat",
        "reference": _unasked("large"),
        "beta": 1.0,
    },
    "large-two-traits": {
        "base": _unasked("large"),
        "strategy": "eft",
        "traits": [
            {"tuned": "small-chat", "reference": _unasked("small"), "beta": 1.0},
            {"tuned": "small-courteous", "reference": "small-chat", "beta": 1.5},
        ],
    },
    "large-contrastive": {
        "base": "large-chat",
        "strategy": "contrastive",
        "amateur": "small-chat",
        "alpha": 0.1,
        "beta": 0.5,
    },
    "large-unlearned": {
        "base": "large-chat",
        "strategy": "unlearn",
        "assistant": "forget-assistant",
        "weight": UNLEARN_WEIGHT,
        "filter": UNLEARN_FILTER,
    },
}


def operator_file() -> str:
    """The file's text."""
    models = {name: {"path": name, "template": template, **TOOLS} for name, template in MODELS.items()}
    return HEADER + yaml.safe_dump({"models": models, "compositions": COMPOSITIONS}, sort_keys=False)
