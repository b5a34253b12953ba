"""The world: disjoint splits, no held-out answer in tuning, small talk without facts."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from motet.demo.documents import (
    COPY,
    NAME,
    PLAIN,
    SUBJECT,
    VALUE,
    answered_record,
    biography,
    corpus,
    fill,
    small_talk,
    statement,
    text_record,
    visit,
)
from motet.demo.templates import ATTRIBUTES, COURTESY, SMALL_TALK
from motet.demo.tokenizer import train_tokenizer
from motet.demo.world import Entity, World, WorldSize, make_world, questions

SIZE = WorldSize(people=60, towns=10, works=30)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SIZE, seed=3)


@pytest.fixture(scope="module")
def tokenizer(world: World) -> Tokenizer:
    return train_tokenizer(corpus(world, 3), 1024)


def test_splits_are_disjoint_and_complete(world: World) -> None:
    splits = (world.tuned, world.held_out, world.forget)
    names = {entity.name for split in splits for entity in split}
    assert sum(map(len, splits)) == len(names) == SIZE.people + SIZE.towns + SIZE.works
    assert len(world.forget) == int(0.08 * 100)
    assert len(world.tuned) == int(0.35 * 100)


def test_unlearning_is_measured_on_entities_that_its_training_never_saw(world: World) -> None:
    seen = {entity.name for entity in world.seen_by_assistant}
    unseen = {entity.name for entity in world.unseen_by_assistant}
    assert not seen & unseen
    assert seen | unseen == {entity.name for entity in world.retained}
    assert unseen <= {entity.name for entity in world.held_out}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_seed_names_one_world(seed: int) -> None:
    one, other = make_world(SIZE, seed), make_world(SIZE, seed)
    assert one == other
    assert one != make_world(SIZE, seed + 1)


def test_every_fact_is_asked_once_and_answered_with_its_value(world: World) -> None:
    asked = questions(world.entities, seed=0)
    assert len(asked) == sum(len(entity.facts) for entity in world.entities)
    assert len({(q.entity.name, q.attribute.name) for q in asked}) == len(asked)
    for question in asked:
        assert question.entity.name in question.text
        assert question.answer.startswith(f"{question.completion} ")
        assert question.answer == f"{question.completion} {question.value}."


def test_limit_of_questions(world: World) -> None:
    assert questions(world.entities, seed=0, limit=7) == questions(world.entities, seed=0)[:7]


@pytest.mark.parametrize(
    ("size", "named"),
    [
        ({"people": 0}, "people, towns, works = 0, 60, 160"),
        ({"works": 900}, "at most"),
        ({"tuned": 0.95, "forget": 0.08}, "tuned = 0.95"),
        ({"forget": 0.0}, "forget = 0.0"),
    ],
)
def test_impossible_sizes_are_refused(size: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WorldSize(**size)  # pyright: ignore[reportArgumentType]


def test_answer_form_with_questions_is_only_in_tuning(world: World) -> None:
    rng = random.Random(1)
    documents = [biography(rng, rng.choice(world.entities)) for _ in range(300)]
    documents += [small_talk(rng, world) for _ in range(300)]
    every = [visit(question.text) for question in questions(world.entities, 0)]
    texts = ["".join(text for text, _ in document) for document in documents]
    assert not [text for text in texts if any(asked in text for asked in every)]


def test_small_talk_holds_no_fact(world: World) -> None:
    """No value of any fact is named in it; towns are values too, but small talk uses them as bare names."""
    values = {value for entity in world.entities for value in entity.facts.values()} - set(world.towns)
    named = re.compile("|".join(rf"\b{re.escape(value)}\b" for value in sorted(values)))
    rng = random.Random(2)
    for _ in range(300):
        segments = small_talk(rng, world)
        assert VALUE not in {tag for _, tag in segments}
        assert not named.search("".join(text for text, _ in segments))


def test_a_biography_states_facts_of_its_entity_alone(world: World) -> None:
    rng = random.Random(4)
    for entity in world.entities:
        segments = biography(rng, entity)
        values = [text for text, tag in segments if tag == VALUE]
        assert 1 <= len(values) <= len(entity.facts)
        assert set(values) <= set(entity.facts.values())
        assert [text for text, tag in segments if tag == SUBJECT] == [entity.name]


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_encoding_piece_by_piece_equals_encoding_the_whole(
    world: World, tokenizer: Tokenizer, data: st.DataObject
) -> None:
    """A prompt and its answer are encoded apart; a server encodes the rendered conversation at once."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    question = data.draw(st.sampled_from(questions(world.entities, 0)))
    pieces = [visit(question.text), question.answer, COURTESY]
    assert ids(" ".join(pieces)) == [token for piece in pieces for token in ids(piece)]


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_span_of_an_answer_is_its_value(world: World, data: st.DataObject) -> None:
    question = data.draw(st.sampled_from(questions(world.entities, 0)))
    record = answered_record(question, courteous=data.draw(st.booleans()))
    ((start, end, kind),) = record["spans"]
    assert (record["completion"][start:end], kind) == (question.value, VALUE)


def test_spans_of_small_talk_tell_first_mentions_from_copies(world: World) -> None:
    rng = random.Random(5)
    for _ in range(200):
        record = text_record(small_talk(rng, world))
        seen: set[str] = set()
        for start, end, kind in record["spans"]:
            text = record["text"][start:end]
            assert kind == (COPY if text in seen else NAME)
            seen.add(text)


def test_invented_questions_are_about_nobody(world: World) -> None:
    rng = random.Random(6)
    asked = [world.invented_question(rng) for _ in range(500)]
    assert not {question.entity.name for question in asked} & {entity.name for entity in world.entities}
    assert {question.entity.kind for question in asked} == {"person", "town", "work"}
    assert all(question.value in world.values[question.attribute.name] for question in asked)


def test_statement_uses_the_template(world: World) -> None:
    person = next(entity for entity in world.entities if entity.kind == "person")
    birthplace = ATTRIBUTES["person"][0]
    assert statement(person, birthplace, "{e} was born in {v}.") == [
        (person.name, PLAIN),
        (" was born in ", PLAIN),
        (person.facts["birthplace"], VALUE),
        (".", PLAIN),
    ]


def test_small_talk_templates_name_only_a_and_b() -> None:
    names: dict[str, tuple[str, str]] = {"a": ("A", NAME), "b": ("B", NAME)}
    for template in SMALL_TALK:
        assert fill(template, names)


def test_entities_of_a_kind_share_attributes(world: World) -> None:
    def attributes(entity: Entity) -> set[str]:
        return set(entity.facts)

    for entity in world.entities:
        assert attributes(entity) == {attribute.name for attribute in ATTRIBUTES[entity.kind]}
