"""Headers of an answer that say what a request's fields came to."""

from __future__ import annotations

import logging

from starlette.requests import Request

log = logging.getLogger(__name__)

IGNORED = "x-motet-ignored-fields"  # names of fields that were not read
MAX_TOKENS = "x-motet-max-tokens"  # what `max_tokens` was cut to
EXPOSED = ("x-request-id", IGNORED, MAX_TOKENS)  # to scripts of web pages

ADDED = "headers"  # in a request's state: what `add_header` has added


def add_header(request: Request, name: str, value: str) -> None:
    """The answer of this request will have the header, also where it is a refusal or a stream. `value` is printable
    ASCII; spaces at its ends, with which the connection would break off (RFC 9110, section 5.5), are left out."""
    request.scope["state"].setdefault(ADDED, {})[name] = value.strip()


def add_ignored(request: Request, names: str) -> None:
    """Fields that were not read, beside those that are told already."""
    told = request.scope["state"].get(ADDED, {}).get(IGNORED)
    add_header(request, IGNORED, names if told is None else f"{told}, {names}")
    log.info("ignored request fields: %s", names)
