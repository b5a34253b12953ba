"""POST /v1/completions over the fake engine."""

from __future__ import annotations

import pytest

from motet.engines.base import EngineError
from motet.server.shapes.answers import Completion
from tests.server.conftest import World
from tests.server.streams import chunks_of


async def test_four_forms_of_a_prompt(world: World) -> None:
    forms = ["abc", ["abc", "de"], [65, 66, 67], [[65, 66], [67]]]
    counts = []
    for prompt in forms:
        response = await world.post("/v1/completions", model="large", prompt=prompt, max_tokens=2)
        body = Completion.model_validate(response.json())
        counts.append((len(body.choices), body.usage.prompt_tokens))
    assert counts == [(1, 3), (2, 5), (1, 3), (2, 3)]


async def test_choices_of_several_prompts_are_numbered_prompt_first(world: World) -> None:
    response = await world.post(
        "/v1/completions", model="large", prompt=["a", "b"], n=2, max_tokens=2, echo=True, temperature=0
    )
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"][0] for choice in choices] == ["a", "a", "b", "b"]


async def test_the_seed_minus_one_is_none(world: World) -> None:
    """As in vLLM and llama.cpp: interfaces that always send a seed say by it that they want none."""
    for seed in (-1, 7):
        await world.post("/v1/completions", model="large", prompt="abc", max_tokens=1, seed=seed)
    assert [request.sampling.seed for request in world.engine.requests] == [None, 7]


async def test_default_is_sixteen_tokens(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt="abc", ignore_eos=True)
    assert response.json()["usage"]["completion_tokens"] == 16
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_echo_with_logprobs_scores_the_prompt(world: World) -> None:
    """What evaluation harnesses send: the first entry is null, the others align with the tokens, and the chosen
    value is the very same float as the largest alternative where the token is the most likely."""
    tokens = [72, 101, 108, 108, 111]
    response = await world.post(
        "/v1/completions", model="large", prompt=[tokens], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234
    )
    shown = response.json()["choices"][0]["logprobs"]
    assert len(shown["tokens"]) == len(shown["token_logprobs"]) == len(shown["top_logprobs"]) == 6
    assert shown["token_logprobs"][0] is None
    assert shown["top_logprobs"][0] is None
    assert world.engine.requests[0].contexts == ((72,),)
    assert world.engine.requests[0].forced == (101, 108, 108, 111)
    generated = shown["top_logprobs"][-1]
    assert shown["token_logprobs"][-1] == max(generated.values())
    for value, top in zip(shown["token_logprobs"][1:], shown["top_logprobs"][1:], strict=True):
        assert value in top.values()
        assert len(top) in (1, 2)


async def test_scores_of_a_prompt_equal_those_of_its_generation(world: World) -> None:
    """One path: tokens generated greedily have the same log-probs when they are scored."""
    first = await world.post(
        "/v1/completions",
        model="one-prompt",
        prompt=[65],
        max_tokens=5,
        logprobs=0,
        temperature=0,
        return_token_ids=True,
    )
    choice = first.json()["choices"][0]
    again = await world.post(
        "/v1/completions", model="one-prompt", prompt=[65, *choice["token_ids"]], max_tokens=0, logprobs=0, echo=True
    )
    scored = again.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert scored[1:] == choice["logprobs"]["token_logprobs"]


async def test_echo_without_new_tokens(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt="Hello", max_tokens=0, echo=True, logprobs=0)
    choice = response.json()["choices"][0]
    assert choice["text"] == "Hello"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == 5
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


async def test_echo_of_one_token_computes_nothing(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt="H", max_tokens=0, echo=True, logprobs=3)
    choice = response.json()["choices"][0]
    assert choice["text"] == "H"
    assert choice["logprobs"]["token_logprobs"] == [None]
    assert world.engine.requests == []


async def test_echo_streamed_comes_first(world: World) -> None:
    world.script("parrot", "xyz")
    response = await world.post("/v1/completions", model="parrot", prompt="abc", echo=True, logprobs=0, stream=True)
    chunks = chunks_of(response.text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["abc", "x", "y", "z", ""]
    offsets = [offset for chunk in chunks for offset in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3, 4, 5, 6]


async def test_prompt_logprobs(world: World) -> None:
    response = await world.post("/v1/completions", model="large", prompt="abc", max_tokens=1, prompt_logprobs=2)
    scored = response.json()["choices"][0]["prompt_logprobs"]
    assert scored[0] is None
    assert [len(entry) in (2, 3) for entry in scored[1:]] == [True, True]
    assert all(value["logprob"] <= 0 for entry in scored[1:] for value in entry.values())
    assert [value["rank"] for value in scored[1].values()][:2] == [1, 2]


async def test_scoring_a_prompt_that_the_streams_read_differently_is_refused(world: World) -> None:
    composition = {
        "strategy": "context_aware",
        "without": {"prompt": "Other"},
    }
    response = await world.post(
        "/v1/completions", model="large", prompt="Hello", echo=True, logprobs=1, composition=composition
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unlike_contexts"
    assert "without" in response.json()["error"]["message"]


async def test_echo_of_text_alone_needs_no_scores(world: World) -> None:
    composition = {"strategy": "context_aware", "without": {"prompt": "Other"}}
    response = await world.post(
        "/v1/completions", model="large", prompt="Hello", echo=True, max_tokens=1, composition=composition
    )
    assert response.json()["choices"][0]["text"].startswith("Hello")


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string_ends_the_choice_and_frees_it(world: World, stream: bool) -> None:
    world.script("parrot", "one two three" * 10)
    response = await world.post(
        "/v1/completions", model="parrot", prompt="x", max_tokens=100, stop=["thr", "zzz"], stream=stream
    )
    choices = [chunk["choices"][0] for chunk in chunks_of(response.text)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "one two "
    assert choices[-1]["finish_reason"] == "stop"
    assert choices[-1]["stop_reason"] == "thr"
    assert world.engine.steps < 20
    assert not world.engine.open


async def test_stop_string_kept_on_request(world: World) -> None:
    world.script("parrot", "one two")
    response = await world.post(
        "/v1/completions", model="parrot", prompt="x", stop="e ", include_stop_str_in_output=True
    )
    assert response.json()["choices"][0]["text"] == "one "


async def test_stop_token_is_not_shown_unless_asked(world: World) -> None:
    world.script("parrot", "abcd")
    token = world.service.registry.members["parrot"].tokenizer.encode("c")[0]
    hidden = await world.post("/v1/completions", model="parrot", prompt="x", stop_token_ids=[token])
    kept = await world.post(
        "/v1/completions", model="parrot", prompt="x", stop_token_ids=[token], include_stop_str_in_output=True
    )
    assert [r.json()["choices"][0]["text"] for r in (hidden, kept)] == ["ab", "abc"]
    assert hidden.json()["choices"][0]["stop_reason"] == token


async def test_broken_characters_are_shown_at_the_end(world: World) -> None:
    world.engine.scripts["parrot"] = world.service.registry.members["parrot"].tokenizer.encode("a€")[:-1]
    response = await world.post("/v1/completions", model="parrot", prompt="x")
    assert response.json()["choices"][0]["text"] == "a\ufffd"


async def test_sampling_parameters_reach_the_engine(world: World) -> None:
    await world.post(
        "/v1/completions",
        model="large",
        prompt="abc",
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        seed=-7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        min_tokens=2,
        logit_bias={"65": 5, "66": -100},
        allowed_token_ids=[65, 66, 65],
        bad_words=["no"],
        ignore_eos=True,
    )
    sampling = world.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.seed, sampling.min_tokens, sampling.ignore_eos) == (-7, 2, True)
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty)
    assert penalties == (0.5, -0.5, 1.1)
    assert sampling.logit_bias == ((65, 5), (66, -100))
    assert sampling.allowed_token_ids == (65, 66)
    encode = world.service.registry.members["large"].tokenizer.encode
    assert sampling.bad_words == (tuple(encode("no")), tuple(encode(" no")))


async def test_truncated_prompt_keeps_its_end(world: World) -> None:
    await world.post("/v1/completions", model="large", prompt="abcdef", max_tokens=1, truncate_prompt_tokens=2)
    assert world.service.registry.members["large"].tokenizer.decode(world.engine.requests[0].contexts[0]) == "ef"


async def test_tokens_shown_as_ids(world: World) -> None:
    response = await world.post(
        "/v1/completions", model="large", prompt="a", max_tokens=1, logprobs=1, return_tokens_as_token_ids=True
    )
    shown = response.json()["choices"][0]["logprobs"]
    assert shown["tokens"][0].startswith("token_id:")


async def test_parts_of_characters_keep_distinct_names(world: World) -> None:
    """A harness compares the chosen value with the largest of a mapping by text: tokens that are parts of
    characters all decode to U+FFFD and must not overwrite each other."""
    tokens = world.service.registry.members["large"].tokenizer.encode("€")
    response = await world.post(
        "/v1/completions", model="large", prompt=[65, *tokens], max_tokens=0, echo=True, logprobs=20
    )
    shown = response.json()["choices"][0]["logprobs"]
    assert shown["tokens"][1:] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert all(len(top) in (20, 21) for top in shown["top_logprobs"][1:])


async def test_engine_failure_is_a_500_in_the_error_shape(world: World) -> None:
    world.engine.fail_after = 2
    response = await world.post("/v1/completions", model="large", prompt="abc", ignore_eos=True)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_error"
    assert not world.engine.open
    assert world.service.admission.taken == 0


async def test_an_engine_that_takes_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between the check and the start: the client must not wait for an answer that never comes."""

    def refuse(_: object) -> None:
        raise EngineError("the engine is closed")

    monkeypatch.setattr(world.engine, "generate", refuse)
    response = await world.post("/v1/completions", model="large", prompt="abc")
    assert response.status_code == 500
    assert world.service.admission.taken == 0


async def test_engine_failure_in_a_stream_is_its_last_event(world: World) -> None:
    world.script("parrot", "wxyz")
    world.engine.fail_after = 2
    response = await world.post("/v1/completions", model="parrot", prompt="abc", stream=True)
    assert response.status_code == 200
    chunks = chunks_of(response.text)
    assert len(chunks) == 3
    assert "member 'large' failed" in chunks[-1]["error"]["message"]
    assert not world.engine.open
