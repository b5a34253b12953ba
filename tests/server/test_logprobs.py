"""Names and numbers of tokens in answers."""

from __future__ import annotations

import math

import pytest

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams, TokenOutput
from motet.server.forms import LOWEST, chat_logprobs, completion_logprobs, shift_class, top_by_label
from motet.server.prepare import Job
from motet.server.query import Display
from tests.server.test_detokenizer import WORDS, byte_fallback

LETTER, BYTE = WORDS.index("e"), len(WORDS) + ord("e")  # two tokens that read "e"
REQUEST = GenerationRequest("r", single("m"), ((1,),), SamplingParams(max_tokens=1))


def job() -> Job:
    return Job(REQUEST, byte_fallback(), (1,))


def test_tokens_that_read_alike_do_not_overwrite_each_other() -> None:
    """A harness takes the largest of the mapping's values as the most likely token's."""
    output = TokenOutput(0, BYTE, -2.0, top=((LETTER, -1.0),))
    assert top_by_label(output, job(), Display(), 1) == {"e": -1.0, f"token_id:{BYTE}": -2.0}


def test_the_chosen_token_is_among_the_alternatives_once() -> None:
    output = TokenOutput(0, LETTER, -1.0, top=((LETTER, -1.0), (BYTE, -2.0)))
    assert list(top_by_label(output, job(), Display(), 2).values()) == [-1.0, -2.0]
    assert list(top_by_label(output, job(), Display(), 0).values()) == [-1.0]


def test_json_has_no_infinity() -> None:
    output = TokenOutput(0, LETTER, -math.inf, top=((BYTE, -math.inf),))
    for shown in (
        completion_logprobs([(output, 0)], job(), Display(logprobs=1), first=None),
        chat_logprobs([output], job(), Display(logprobs=1)),
    ):
        assert str(LOWEST) in str(shown)
        assert "inf" not in str(shown)


@pytest.mark.parametrize(("rank", "name"), [(0, "unshifted"), (1, "marginal"), (2, "marginal"), (3, "shifted")])
def test_shift_classes(rank: int, name: str) -> None:
    assert shift_class(rank) == name
