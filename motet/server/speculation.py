"""What a request says of guessing ahead → what the engine is asked."""

from __future__ import annotations

from typing import Literal

from motet.composers.errors import show
from motet.composers.plan import Plan
from motet.engines.drafts import AUTO, OFF, Speculation, draft_names, drafts_of, has_drafts
from motet.server.http.errors import invalid
from motet.server.shapes.requests import SpeculationOptions
from motet.settings import offer


def wish_of(written: Literal["auto", "off"] | SpeculationOptions, plan: Plan) -> Speculation:
    """
    Raises:
        ApiError: 400, the composition has no such draft, or none at all.
    """
    match written:
        case "off":
            return OFF
        case "auto":
            return AUTO
        case asked:
            if not has_drafts(plan):
                raise invalid(
                    "Nothing guesses ahead in this composition: a member reads several tokens in the place of one "
                    "(vocab: map). Leave 'speculation' out.",
                    "speculation",
                )
            if not drafts_of(plan, asked.draft):
                wrong = f"{show(asked.draft)} is no stream of the composition that guesses ahead."
                raise invalid(f"{wrong}{offer(str(asked.draft), draft_names(plan))}", "speculation.draft")
            return Speculation(asked.draft, asked.tokens, asked.acceptance)
