"""Members of other tokens than the base of their composition, where the operator lets them be mapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan
from motet.composers.rules import EscalationRule
from motet.composers.token_map import TokenMap, Tokens, token_map
from motet.models.info import ModelInfo
from motet.models.pieces import pieces_of, spelled
from motet.models.tokenizer import ChatTemplateError, Tokenizer
from motet.operator.loaded import LoadedModel


@dataclass(frozen=True)
class TokenMaps:
    """The maps between models' tokens, each made once for all models that have the same ones and end alike."""

    _made: dict[tuple[object, ...], TokenMap] = field(default_factory=dict[tuple[object, ...], TokenMap])

    def between(self, base: LoadedModel, own: LoadedModel) -> TokenMap:
        """What the base's ids are to another model. The first time takes seconds where there are 150,000 tokens."""
        ends = [(side.vocabulary.fingerprint, side.info.eos_token_ids) for side in (base, own)]
        key = (base.info.vocab_size, *ends)
        if key not in self._made:
            spell = partial(_spelled, base.tokenizer, own.tokenizer)
            tokens = [_tokens(side.tokenizer, side.info) for side in (base, own)]
            self._made[key] = token_map(tokens[0], tokens[1], base.info.vocab_size, spell)
        return self._made[key]


def _tokens(tokenizer: Tokenizer, info: ModelInfo) -> Tokens:
    start = cast("int | None", tokenizer.hf.bos_token_id)
    return Tokens(pieces_of(tokenizer.backend), _ends(tokenizer, info), start)


def _spelled(base: Tokenizer, own: Tokenizer, token: int) -> list[int]:
    return spelled(base.bytes_of(token), own)


def _ends(tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    """Of an answer, first the one that the chat template writes behind answers, else the tokenizer's own."""
    ends = info.eos_token_ids
    first = _end_of_turn(tokenizer, ends)
    return sorted(ends, key=lambda end: (end != first, end != tokenizer.hf.eos_token_id))


def _end_of_turn(tokenizer: Tokenizer, ends: tuple[int, ...]) -> int | None:
    if not tokenizer.has_chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        written = tokenizer.encode(tokenizer.render_chat(turns, add_generation_prompt=False))
    except ChatTemplateError:
        return None
    return next((token for token in reversed(written) if token in ends), None)


def check_mapped(plan: Plan) -> None:
    """
    Raises:
        CompositionError: members that have nothing in common, or whose whole answers are to be judged.
    """
    for stream in plan.streams:
        if stream.tokens is None:
            continue
        if isinstance(plan.rule, EscalationRule):
            said = "answers whole, and its tokens are not those of the base: give 'per' as 'token'"
        elif stream.tokens.num_shared == 0:
            said = "has none of the tokens of the base"
        else:
            continue
        raise CompositionError(f"{stream.role} {stream.model!r} {said}.", "composition", "vocabulary_mismatch")


def with_maps(plan: Plan, maps: Mapping[str, TokenMap]) -> Plan:
    """The plan with the maps of its streams' models, where there are any."""
    if not maps:
        return plan
    return replace(plan, streams=tuple(replace(stream, tokens=maps.get(stream.model)) for stream in plan.streams))


def maps_of(plan: Plan) -> dict[str, TokenMap]:
    """Of the models that have some."""
    return {stream.model: stream.tokens for stream in plan.streams if stream.tokens is not None}


def map_cards(*plans: Plan) -> dict[str, Any] | None:
    """What `/v1/models` says of them; None: there are none."""
    found = {model: tokens for plan in plans for model, tokens in maps_of(plan).items()}
    cards = {
        model: {"exact": tokens.is_exact, "shared": tokens.num_shared, "tokens": len(tokens.ids)}
        for model, tokens in found.items()
    }
    return cards or None
