"""Names and numbers of tokens in answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.outputs import TokenOutput
from motet.server.logprobs import LOWEST, chat_logprobs, completion_logprobs, top_by_label
from motet.server.prepare import Job
from motet.server.query import Display
from motet.server.token_traces import shift_class
from tests.server.conftest import World
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
        completion_logprobs([(output, 0)], job(), Display(), 1, first=None),
        chat_logprobs([output], job(), Display(), 1),
    ):
        assert str(LOWEST) in str(shown)
        assert "inf" not in str(shown)


@pytest.mark.parametrize(("rank", "name"), [(0, "unshifted"), (1, "marginal"), (2, "marginal"), (3, "shifted")])
def test_shift_classes(rank: int, name: str) -> None:
    assert shift_class(rank) == name


@pytest.mark.parametrize(("path", "asked"), [("/v1/chat/completions", True), ("/v1/completions", 0)])
async def test_named_tokens(world: World, path: str, asked: Any) -> None:
    """`logprob_token_ids`: the log-probs of these tokens, and of no other."""
    fixed: dict[str, Any] = {"model": "large", "max_tokens": 3, "temperature": 0, "return_tokens_as_token_ids": True}
    text = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    ids = [70, 5, 70]
    body = (await world.post(path, **fixed, **text, logprobs=asked, logprob_token_ids=ids)).json()
    found = body["choices"][0]["logprobs"]
    for place in range(3):
        if "chat" in path:
            assert {entry["token"] for entry in found["content"][place]["top_logprobs"]} == {
                "token_id:70",
                "token_id:5",
            }
        else:
            assert set(found["top_logprobs"][place]) == {"token_id:70", "token_id:5", found["tokens"][place]}
    for wrong, said in (
        ({"logprob_token_ids": ids}, "needs 'logprobs'"),
        ({"logprob_token_ids": [99999], "logprobs": asked}, "not in the vocabulary"),
        ({"logprob_token_ids": ids, "logprobs": asked, "prompt_logprobs": 1}, "excludes 'prompt_logprobs'"),
    ):
        refused = await world.post(path, **fixed, **text, **wrong)
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]
