"""Drafts for composed models: repeated text (n-gram), or one of the file's models, an expert as a rule.

vLLM proposes and schedules them; `sampler.verify` decides. Answers stay the same, so this is an option of speed alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from motet.settings import nearest

OPTION = "speculative_config"
MODEL, NGRAM = "draft_model", "ngram"
# vLLM's own names; what else it knows there belongs to drafters that read one model's hidden states, or to its own test
KEYS = ("method", "model", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")


def draft_of(given: Mapping[str, Any]) -> str | None:
    """The model of the file that drafts, if one does."""
    config: Any = given.get(OPTION)
    return cast("Mapping[str, Any]", config).get("model") if isinstance(config, Mapping) else None


def for_models(given: Mapping[str, Any], models: Collection[str]) -> dict[str, Any]:
    """The options of an engine that holds these models: a model drafts for those that it shares an engine with."""
    draft = draft_of(given)
    return {name: value for name, value in given.items() if name != OPTION or draft is None or draft in models}


def problems_of(given: Mapping[str, Any], models: Collection[str]) -> list[str]:
    """Why `engine_args.speculative_config` cannot be taken: one sentence each."""
    config: Any = given.get(OPTION)
    if config is None:
        return []
    where = f"engine_args.{OPTION}"
    if not isinstance(config, Mapping):
        return [f"{where}: a mapping of {', '.join(KEYS)} is expected, got {type(config).__name__}."]
    return _problems(where, {str(key): value for key, value in config.items()}, models)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _problems(where: str, config: Mapping[str, Any], models: Collection[str]) -> list[str]:
    found = [
        f"{where}.{key}: not taken; allowed are {', '.join(KEYS)}.{nearest(key, KEYS)}"
        for key in config
        if key not in KEYS
    ]
    model, method = config.get("model"), config.get("method", MODEL if "model" in config else None)
    if method not in (MODEL, NGRAM):
        found.append(f"{where}.method: {method!r} is not taken; allowed are {MODEL!r} (with a model) and {NGRAM!r}.")
    elif method == MODEL and model not in models:
        known = ", ".join(map(repr, models))
        found.append(f"{where}.model: {model!r} is none of the file's models {known}.{nearest(str(model), models)}")
    elif method == NGRAM and model is not None:
        found.append(f"{where}.model: {NGRAM!r} drafts from the text itself and takes no model.")
    count = config.get("num_speculative_tokens")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        found.append(f"{where}.num_speculative_tokens: a whole number from 1 on is expected, got {count!r}.")
    return found


def with_path(given: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """The options as vLLM takes them: a model's path instead of its name."""
    draft = draft_of(given)
    if draft is None:
        return dict(given)
    return {**given, OPTION: {**given[OPTION], "method": MODEL, "model": paths[draft]}}
