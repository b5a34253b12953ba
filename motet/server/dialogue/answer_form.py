"""What an answer to messages may be and how it is read: the words of its composition, the thought before it, the
grammar that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from motet.composers.plan import Plan
from motet.composers.schedule import ThoughtSpelling
from motet.engines.base import Grammar, ThoughtPhase
from motet.models.chat_template import behind
from motet.operator.loaded import LoadedModel
from motet.operator.registry import Registry
from motet.server.dialogue.conversation import no_tools
from motet.server.dialogue.parts import Syntax
from motet.server.dialogue.reasoning import NAME_TAGS, phase_of, within
from motet.server.dialogue.tool_grammar import CallGrammar, held
from motet.server.dialogue.tools import Offer
from motet.server.http.errors import ApiError, invalid
from motet.server.prompts import AS_IS, text_read
from motet.server.query import Query, RequestPrompt
from motet.server.role_prompts import own_prompt
from motet.server.structured import INVALID_GRAMMAR, TOOLS, asks_for_format, compiled_grammar

OPEN_SHARE = 2 / 3  # of an answer, behind which JSON is closed where the operator wants it


@dataclass(frozen=True)
class AnswerForm:
    """How an answer is taken apart, and the thought before it; of a text that goes on nothing is set. `is_single`: it
    calls one function at most."""

    syntax: Syntax = field(default_factory=Syntax)
    thought: ThoughtPhase | None = None
    is_single: bool = False


def with_tools(prompt: RequestPrompt, offer: Offer) -> RequestPrompt:
    """
    Args:
        prompt: in its dialect.

    Raises:
        ApiError: 400, tools that it has no words for.
    """
    if offer.callable and prompt.dialect.calls is None:
        raise no_tools(TOOLS)
    return replace(prompt, tools=tuple(tool.as_read() for tool in offer.tools))


def form_of(prompt: RequestPrompt, plan: Plan, registry: Registry, query: Query) -> AnswerForm:
    """
    Args:
        prompt: messages, in their dialect.

    Raises:
        ApiError: 400, a bound of thoughts where nobody writes any.
    """
    base, dialect = registry.base_of(plan), prompt.dialect
    budget = query.thinking.tokens(plan, registry.members, dialect)
    opened = opens_thought(plan, prompt, registry.members)
    calls = dialect.calls if query.offer.callable else None
    words = (*(calls.marks if calls else ()), *((dialect.tags.begin, dialect.tags.end) if dialect.tags else ()))
    ids = {base.tokenizer.added_id(word): word for word in words}
    shown = {token: word for token, word in ids.items() if token in base.tokenizer.special_ids}
    fenced = query.offer.loose if calls and not asks_for_format(query.fields) else frozenset[str]()
    must = bool(calls) and query.offer.must
    syntax = Syntax(calls, query.offer.names, must, fenced, dialect.tags, bool(opened), shown)
    return AnswerForm(syntax, phase_of(dialect, base, opened=opened, budget=budget), dialect.is_single)


def opens_thought(plan: Plan, prompt: RequestPrompt, members: Mapping[str, LoadedModel]) -> bool | None:
    """Whether the prompt of the thinking member ends within a thought, or behind one; None: it says nothing of
    thoughts, so that the answer itself may begin one. Only what the template writes to open the answer counts, never
    what a message says."""
    stream, tags = plan.streams[prompt.dialect.thinker], prompt.dialect.tags
    member, own = members[stream.model], stream.prompt or AS_IS
    if tags is None or own.text is not None:
        return None
    asked = prompt if own.messages is None else own_prompt(own)
    if asked.continue_final_message and asked.messages:
        opening = asked.messages[-1]["content"]
    else:
        texts = (text_read(one, own, member) for one in (asked, replace(asked, add_generation_prompt=False)))
        whole, before = ("" if text is None else text.text for text in texts)
        opening = behind(before, whole)
    begun = opening.rfind(tags.begin)
    return None if begun < 0 else begun > opening.rfind(tags.end)


def with_thought(plan: Plan, prompt: RequestPrompt, members: Mapping[str, LoadedModel], base: LoadedModel) -> Plan:
    """The plan, which knows what stands around the thought where schedules have phases.

    Raises:
        ApiError: 400, there are no thoughts.
    """
    if not any(schedule.phase for schedule in plan.schedules):
        return plan
    if prompt.messages is None:
        raise _no_phase("a text that goes on has no thought; ask with messages")
    if prompt.dialect.tags is None:
        raise _no_phase(f"no member of this composition writes thoughts. {NAME_TAGS}")
    opened = opens_thought(plan, prompt, members)
    if opened is False:  # the prompt has ended it
        return plan
    tags = prompt.dialect.tags
    texts = base.tokenizer.spelling((tags.begin, tags.end), base.info.vocab_size)
    return replace(plan, thought=ThoughtSpelling("" if opened else tags.begin, tags.end, texts))


def _no_phase(why: str) -> ApiError:
    return invalid(f"composition: a schedule has a 'phase', and {why}", "composition", "thinking_unsupported")


async def grammar_of(form: AnswerForm, plan: Plan, registry: Registry, query: Query, max_tokens: int) -> Grammar | None:
    """What holds an answer: the grammar of the fields, that of calls, and the thought before; None: nothing.

    Raises:
        ApiError: as `compiled_grammar` does.
    """
    base = registry.base_of(plan)
    try:
        grammar = await _grammar(form, plan, registry, query, query.offer)
    except ApiError as refusal:
        if refusal.param != TOOLS or refusal.code != INVALID_GRAMMAR:
            raise
        grammar = await _grammar(form, plan, registry, query, await held(query.offer, base.grammars))
    if form.thought is not None and (grammar is not None or form.thought.budget is not None):
        grammar = base.grammars.after_thought(within(form.thought, max_tokens), grammar)
    if grammar is None or not base.close_json:
        return grammar
    return base.grammars.closing(grammar, int(OPEN_SHARE * max_tokens))


async def _grammar(form: AnswerForm, plan: Plan, registry: Registry, query: Query, offer: Offer) -> Grammar | None:
    words = form.syntax.calls
    calls = None if words is None else CallGrammar(words, registry.base_of(plan), offer, is_single=form.is_single)
    return await compiled_grammar(query.fields, plan, registry, calls)
