"""Compositions in the requests of the openai SDK."""

from __future__ import annotations

from typing import Any, TypedDict

from motet_client.compositions import Composition, TraceOptions

__all__ = ["Extra", "compose"]


class Extra(TypedDict):
    """What the SDK takes beside OpenAI's own fields."""

    extra_body: dict[str, Any]


def compose(composition: Composition | None = None, /, *, trace: bool | TraceOptions = False, **fields: Any) -> Extra:
    """The keyword arguments of a request that is composed.

        client.chat.completions.create(
            model="large", messages=messages, **compose(ProxyTuning(expert="small-chat", antiexpert="small"))
        )

    Args:
        composition: left out, `model` alone says what answers: a model or a named composition of the server.
        trace: report what each member did to each token; `traced` reads it.
        fields: other fields of Motet's that OpenAI's API does not have (`top_k`, `min_p`, …).
    """
    told: dict[str, Any] = {}
    if composition is not None:
        told["composition"] = composition.as_dict()
    if trace is not False:
        told["trace"] = trace if trace is True else trace.as_dict()
    return {"extra_body": told | fields}
