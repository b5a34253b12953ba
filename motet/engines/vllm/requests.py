"""From what a request carries to its row: our server's own data, or a composition as a client of vLLM writes it.

`Check` asks the same in vLLM's front end, on both of its runners, before a request is taken.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from motet.composers.plan import Plan, single
from motet.engines.vllm.config import known_members, known_width
from motet.engines.vllm.internals import touch
from motet.engines.vllm.options import unsupported
from motet.engines.vllm.table import Row
from motet.engines.vllm.wire import KEY, RowSpec, read_spec

log = logging.getLogger(__name__)
_First: Any = touch("LogitsProcessor")
_Second: Any = touch("LogitsProcessorV2")
COMPOSITION = "composition"  # in vLLM's `vllm_xargs`: JSON text, as the request field of our own server


class Check(_First, _Second):
    """Named in vLLM's `logits_processors`: refuses bad compositions, changes no logits."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, which vLLM answers with a 400."""
        row_of(sampling_params.extra_args, (), [], known_members(), vocab_size=known_width())

    def __init__(self, *_: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def add_request(self, *_: Any) -> bool:
        return False

    def apply(self, logits: Any, *_: Any) -> Any:
        return logits


def row_of(
    extra_args: Mapping[str, Any] | None,
    prompt: Sequence[int],
    output: Sequence[int],
    members: Sequence[str],
    ends: Sequence[int] = (),
    vocab_size: int | None = None,
) -> Row | None:
    """The row of a request; None for one that asks for the first member alone.

    Args:
        members: names that a plan may use; the first is the default base.
        ends: end-of-sequence tokens of the members.
        vocab_size: their shared width, where known: bounds the ids that a composition names.

    Raises:
        ValueError: malformed data, an unknown member, or a plan that this engine does not run.
    """
    if not extra_args:
        return None
    if KEY in extra_args:
        spec = read_spec(extra_args[KEY])
    elif COMPOSITION in extra_args:
        spec = RowSpec(
            _composition(extra_args[COMPOSITION], members, vocab_size), ends=tuple(ends), written_from=len(prompt)
        )
    else:
        _refuse_misspelt(extra_args)
        return None
    reason = unsupported(spec.plan, members)
    if reason is not None:
        raise ValueError(reason)
    return Row(spec, prompt, output)


def _refuse_misspelt(extra_args: Mapping[str, Any]) -> None:
    """Other plugins' arguments are none of ours; a composition that is ignored in silence would be a wrong answer."""
    for key in extra_args:
        if difflib.get_close_matches(key, [COMPOSITION], 1, 0.8):
            raise ValueError(f"vllm_xargs.{key} is unknown; did you mean {COMPOSITION!r}?")


def row_or_fault(
    extra_args: Mapping[str, Any] | None,
    prompt: Sequence[int],
    output: Sequence[int],
    members: Sequence[str],
    ends: Sequence[int],
) -> Row | None:
    """As `row_of`, in a worker, where an exception would end the engine: what nobody has checked before gets a row
    that cannot be composed, whose answer ends at once."""
    try:
        return row_of(extra_args, prompt, output, members, ends)
    except Exception as error:
        log.error("a request that was not checked has reached the engine: %s", error)
        return Row(RowSpec(single("")), prompt, output)


def _composition(text: Any, members: Sequence[str], vocab_size: int | None) -> Plan:
    """Imported here: only clients that speak to vLLM itself need the request's own language."""
    from motet.composers.spec import CompositionError, build_plan, parse_composition

    if not isinstance(text, str):
        raise ValueError(f"vllm_xargs.{COMPOSITION} is JSON text, got {type(text).__name__}")
    try:
        written = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"vllm_xargs.{COMPOSITION} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"vllm_xargs.{COMPOSITION} is no JSON: {error}") from error
    try:
        composition = parse_composition(written)
        # a client's `model` is the whole composite here: the first member is the base unless the composition names one
        base = None if composition.own_base(None) is not None else members[0]
        plan = build_plan(composition, base, known=list(members), token_id=lambda _: None, vocab_size=vocab_size)
    except CompositionError as error:
        raise ValueError(error.message) from error
    if any(stream.prompt is not None for stream in plan.streams):
        raise ValueError(
            f"vllm_xargs.{COMPOSITION}: contexts of their own need Motet's server; every role reads the prompt"
        )
    return plan
