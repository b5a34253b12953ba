"""Thoughts over HTTP: split off, bounded, before grammars and calls; what requests and templates say of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from motet.composers.schedule import AnswerBegin
from motet.models.thoughts import ThinkTags
from tests.fakes import CHAT_TEMPLATE
from tests.models.test_chat_template import HERMES
from tests.server.conftest import MakeWorld, World
from tests.server.test_tools import CHAT, MESSAGES, TOOLS, ask, check, chunks, prompt, refusal, serve

TAGS = "{# <think></think> #}"
SWITCH = (
    "{% if enable_thinking is defined and not enable_thinking %}{% if add_generation_prompt %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
MAY_THINK = CHAT_TEMPLATE + TAGS + SWITCH  # as Qwen 3
THINKS = CHAT_TEMPLATE + TAGS + "{% if add_generation_prompt %}<think>\n{% endif %}"  # as DeepSeek R1
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
CLOSED = {**SCHEMA, "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "ok", "schema": CLOSED}}


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(max_choices=64)


@pytest.mark.parametrize(("template", "begin"), [(MAY_THINK, "<think>\n"), (THINKS, "")])
async def test_the_thought_is_split_off(world: World, template: str, begin: str) -> None:
    serve(world, template)
    world.script("m", f"{begin}It may be.\n</think>\n\nYes.")
    whole = await ask(world, temperature=0, logprobs=True)
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("It may be.", "Yes.")
    sent = [chunk["choices"][0] for chunk in await chunks(world, temperature=0, logprobs=True)]
    assert "".join(c["delta"].get("reasoning_content", "") for c in sent) == "It may be."
    assert "".join(c["delta"].get("content") or "" for c in sent) == "Yes."
    logprobs = [token for c in sent if c["logprobs"] for token in c["logprobs"]["content"]]
    assert logprobs == whole["choices"][0]["logprobs"]["content"]
    thought = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len("It may be.") < thought < whole["usage"]["completion_tokens"]


async def test_a_tag_in_a_message_chooses_nothing(world: World) -> None:
    serve(world, MAY_THINK)
    world.script("m", "Yes.")
    said = [{"role": "user", "content": "Say <think>"}]
    message = (await ask(world, temperature=0, messages=said))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (None, "Yes.")


@pytest.mark.parametrize("template", [MAY_THINK, THINKS])
async def test_a_budget_closes_the_thought_and_an_answer_follows(world: World, template: str) -> None:
    """A model that would think for ever."""
    serve(world, template)
    world.script("m", ("<think>" if template == MAY_THINK else "") + "so and " * 60)
    message = (await ask(world, temperature=0, thinking_token_budget=10, max_tokens=60))["choices"][0]["message"]
    assert message["reasoning_content"] == "so and so"
    assert message["content"]
    # the budget leaves a quarter of the answer's tokens
    late = (await ask(world, temperature=0, thinking_token_budget=1000, max_tokens=60))["choices"][0]["message"]
    assert len(late["reasoning_content"]) <= 45
    assert late["content"]


async def test_grammars_and_calls_begin_behind_the_thought(world: World) -> None:
    serve(world, THINKS, form="hermes")
    for seed in range(3):
        fixed = {"seed": seed, "thinking_token_budget": 12}
        message = (await ask(world, response_format=FORMAT, **fixed))["choices"][0]["message"]
        assert isinstance(json.loads(message["content"])["ok"], bool)
        assert message["reasoning_content"]
        called = (await ask(world, tools=TOOLS, tool_choice="required", **fixed))["choices"][0]["message"]
        check(called["tool_calls"])
        assert called["reasoning_content"]


async def test_effort_is_the_templates_word_or_a_budget(world: World) -> None:
    serve(world, MAY_THINK)
    assert (await prompt(world, reasoning_effort="none")).endswith("<think>\n\n</think>\n\n")
    assert (await prompt(world, reasoning_effort="low")).endswith("<|assistant|>")
    off = {"enable_thinking": False}
    assert (await prompt(world, chat_template_kwargs=off)).endswith("<think>\n\n</think>\n\n")
    serve(world, THINKS)
    world.script("m", "so")
    none = (await ask(world, temperature=0, reasoning_effort="none", max_tokens=40))["choices"][0]["message"]
    assert none["reasoning_content"] is None
    budgets: dict[str, int | None] = {}
    for effort in ("minimal", "medium", "high"):
        await ask(world, reasoning_effort=effort, max_tokens=40)
        grammar = world.engine.requests[-1].sampling.grammar
        budgets[effort] = None if grammar is None or grammar.thought is None else grammar.thought.budget
    assert budgets == dict.fromkeys(budgets, 22), "with its end three quarters of max_tokens at most"
    serve(world, CHAT_TEMPLATE + "{{ reasoning_effort }}")
    assert (await prompt(world, reasoning_effort="high")).endswith("high")


async def test_thoughts_of_the_past(world: World) -> None:
    past = [*MESSAGES, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, *MESSAGES]
    assert "<|assistant|><think>\nHm.\n</think>\n\nYes." in await prompt(serve(world, MAY_THINK), messages=past)
    shown = CHAT_TEMPLATE + TAGS + "{% for message in messages %}{{ message.reasoning_content }}{% endfor %}"
    assert (await prompt(serve(world, shown), messages=past)).endswith("Hm.")
    got = await refusal(serve(world, HERMES), messages=past)
    assert got[0] == "messages.1.reasoning_content"


@pytest.mark.parametrize("body", [{"thinking_token_budget": 5}, {"reasoning_effort": "low"}])
async def test_who_writes_no_thoughts_cannot_bound_them(world: World, body: dict[str, Any]) -> None:
    got = await refusal(serve(world, HERMES), **body)
    assert got[0] == next(iter(body))
    assert "models.NAME.think_tags" in got[1]
    assert (await world.post("/v1/chat/completions", **CHAT, reasoning_effort="none")).status_code == 200


async def test_the_operators_tags(world: World) -> None:
    serve(world, CHAT_TEMPLATE, own_tags=ThinkTags("(", ")"))
    world.script("m", "(Hm.) Yes.")
    message = (await ask(world, temperature=0))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    serve(world, MAY_THINK, own_tags="none")
    world.script("m", "<think>Hm.</think> Yes.")
    message = (await ask(world, temperature=0))["choices"][0]["message"]
    assert message["content"] == "<think>Hm.</think> Yes."
    assert "reasoning_content" not in message


PHASED = {"strategy": "rules", "repetition": 0.5, "schedule": {"phase": "thought", "warmup": 3}}


@pytest.mark.parametrize(("template", "begin"), [(MAY_THINK, "<think>"), (THINKS, "")])
async def test_a_schedule_of_a_phase_knows_where_the_thought_ends(world: World, template: str, begin: str) -> None:
    serve(world, template)
    await ask(world, composition=PHASED, max_tokens=2)
    plan = world.engine.requests[-1].plan
    assert plan.thought is not None
    assert (plan.thought.begin, plan.thought.end) == (begin, "</think>")
    tokenizer = world.service.registry.members["m"].tokenizer
    answer = AnswerBegin(plan.thought)
    thought = tokenizer.encode(f"{begin}It < may\n</think>")
    assert [answer.of(thought[:size]) for size in (0, len(thought) - 1)] == [None, None]
    assert answer.of([*thought, *tokenizer.encode("\n\nYes")]) == len(thought)
    # a thought that the prompt has ended is none
    if template == MAY_THINK:
        await ask(world, composition=PHASED, max_tokens=2, chat_template_kwargs={"enable_thinking": False})
        assert world.engine.requests[-1].plan.thought is None


async def test_a_phase_needs_thoughts(world: World) -> None:
    got = await refusal(serve(world, HERMES), composition=PHASED)
    assert got[0] == "composition"
    assert "models.NAME.think_tags" in got[1]
    serve(world, THINKS)
    for path, body in (
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 2}),
        ("/v1/score", {"prompt": "Hi", "continuations": ["a"]}),
    ):
        answer = await world.post(path, model="m", composition=PHASED, **body)
        assert answer.status_code == 400
        assert "ask with messages" in answer.json()["error"]["message"]
