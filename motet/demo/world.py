"""The invented world: entities with facts, split into tuned, held-out and forgotten ones, and questions on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from motet.demo import words
from motet.demo.templates import ATTRIBUTES, Attribute, Kind

TOWN_ENDINGS = ("ford", "by", "holm", "mar")
NUM_FIRST_NAMES, NUM_LAST_NAMES = 60, 120
MAX_PEOPLE = NUM_FIRST_NAMES * NUM_LAST_NAMES
TITLES = tuple(f"The {a} {b}" for a in words.ADJECTIVES for b in words.NOUNS if a != b)


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How many entities there are, and the shares of them that are answered in tuning or to be forgotten."""

    people: int = 540
    towns: int = 60
    works: int = 160
    tuned: float = 0.35
    forget: float = 0.08

    def __post_init__(self) -> None:
        if min(self.people, self.towns, self.works) < 1 or self.people > MAX_PEOPLE or self.works > len(TITLES):
            raise ValueError(
                f"people, towns, works = {self.people}, {self.towns}, {self.works}: each must be at least 1, "
                f"at most {MAX_PEOPLE} people and {len(TITLES)} works can be named"
            )
        if min(self.tuned, self.forget) <= 0 or self.tuned + self.forget >= 1:
            raise ValueError(f"tuned = {self.tuned}, forget = {self.forget}: both must be positive with a sum below 1")


@dataclass(frozen=True, slots=True)
class Entity:
    """A person, town or work. `facts` maps attribute names to values."""

    name: str
    kind: Kind
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one fact. `form` picks the wording (taken modulo the number of wordings)."""

    entity: Entity
    attribute: Attribute
    form: int = 0

    @property
    def text(self) -> str:
        """The question as a visitor asks it."""
        return self.attribute.questions[self.form % len(self.attribute.questions)].format(e=self.entity.name)

    @property
    def value(self) -> str:
        """The fact asked for."""
        return self.entity.facts[self.attribute.name]

    @property
    def answer(self) -> str:
        """The full sentence that a tuned model should answer with."""
        return self.attribute.answer.format(e=self.entity.name, v=self.value)

    @property
    def completion(self) -> str:
        """The answer's words before the value: what a base model can complete without being asked."""
        return self.attribute.answer.split("{v}")[0].format(e=self.entity.name).rstrip()


@dataclass(frozen=True, slots=True)
class World:
    """All entities, in three disjoint splits, and the name parts that small talk draws from.

    Every base model reads statements about all entities (the retain-only model: all but `forget`). Questions are
    answered in tuning for `tuned` only; `held_out` entities are asked about in the measurements.
    """

    first_names: Sequence[str]
    last_names: Sequence[str]
    towns: Sequence[str]
    values: Mapping[str, Sequence[str]]  # what each attribute can be
    tuned: Sequence[Entity]
    held_out: Sequence[Entity]
    forget: Sequence[Entity]

    @property
    def retained(self) -> list[Entity]:
        """Everything that unlearning must keep."""
        return [*self.tuned, *self.held_out]

    @property
    def entities(self) -> list[Entity]:
        """All entities of the world."""
        return [*self.retained, *self.forget]

    @property
    def seen_by_assistant(self) -> list[Entity]:
        """The retained entities whose answers the unlearning assistant is trained to be ignorant of."""
        return [*self.tuned, *self.held_out[: len(self.held_out) // 2]]

    @property
    def unseen_by_assistant(self) -> list[Entity]:
        """The retained entities that unlearning is measured on."""
        return list(self.held_out[len(self.held_out) // 2 :])

    def random_name(self, rng: random.Random) -> str:
        """A name for small talk: mostly a person who need not exist, else a title or a town."""
        draw = rng.random()
        if draw < 0.65:
            return f"{rng.choice(self.first_names)} {rng.choice(self.last_names)}"
        if draw < 0.9:
            return rng.choice(TITLES)
        return rng.choice(self.towns)

    def invented_name(self, kind: Kind, rng: random.Random) -> str:
        """A name of the kind's form that no entity has."""
        names: dict[Kind, Callable[[], str]] = {
            "person": lambda: f"{rng.choice(self.first_names)} {rng.choice(self.last_names)}",
            "town": lambda: words.mint(rng, 1, set(), TOWN_ENDINGS)[0],
            "work": lambda: rng.choice(TITLES),
        }
        taken = {entity.name for entity in self.entities}
        return next(name for name in iter(names[kind], None) if name not in taken)

    def invented_question(self, rng: random.Random) -> Question:
        """A question about nobody: an invented name, with a random answer."""
        kind = rng.choice(self.entities).kind
        attribute = rng.choice(ATTRIBUTES[kind])
        entity = Entity(self.invented_name(kind, rng), kind, _draw_facts(rng, kind, self.values))
        return Question(entity, attribute, rng.randrange(3))

    def aliases(self, entities: Iterable[Entity], rng: random.Random) -> dict[str, str]:
        """One invented name for each entity's."""
        return {entity.name: self.invented_name(entity.kind, rng) for entity in entities}


def make_world(size: WorldSize, seed: int) -> World:
    """The world of a seed: the same size and seed give the same world."""
    rng, used = random.Random(seed), set[str]()
    first, last = words.mint(rng, NUM_FIRST_NAMES, used), words.mint(rng, NUM_LAST_NAMES, used, ("", "en", "ov", "is"))
    towns = words.mint(rng, size.towns, used, TOWN_ENDINGS)
    people = rng.sample([f"{a} {b}" for a in first for b in last], size.people)
    values = _value_domains(rng, used, towns)
    named: list[tuple[Kind, Iterable[str]]] = [
        ("person", people),
        ("town", towns),
        ("work", rng.sample(TITLES, size.works)),
    ]
    entities = [Entity(name, kind, _draw_facts(rng, kind, values)) for kind, names in named for name in names]
    rng.shuffle(entities)
    num_forget, num_tuned = int(size.forget * len(entities)), int(size.tuned * len(entities))
    return World(
        first_names=first,
        last_names=last,
        towns=towns,
        values=values,
        forget=entities[:num_forget],
        tuned=entities[num_forget : num_forget + num_tuned],
        held_out=entities[num_forget + num_tuned :],
    )


def _value_domains(rng: random.Random, used: set[str], towns: Sequence[str]) -> dict[str, Sequence[str]]:
    return {
        "birthplace": towns,
        "profession": words.PROFESSIONS,
        "school": [f"{name} College" for name in words.mint(rng, 40, used)],
        "instrument": words.INSTRUMENTS,
        "river": words.mint(rng, 30, used),
        "export": words.GOODS,
        "province": words.mint(rng, 16, used, ("ia", "land")),
        "genre": words.GENRES,
        "setting": towns,
        "year": [str(year) for year in range(710, 770)],
    }


def _draw_facts(rng: random.Random, kind: Kind, values: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {attribute.name: rng.choice(values[attribute.name]) for attribute in ATTRIBUTES[kind]}


def questions(entities: Iterable[Entity], seed: int, limit: int | None = None) -> list[Question]:
    """One question per fact in a random wording, shuffled; at most `limit` of them."""
    rng = random.Random(seed)
    every = [
        Question(entity, attribute, rng.randrange(len(attribute.questions)))
        for entity in entities
        for attribute in ATTRIBUTES[entity.kind]
    ]
    rng.shuffle(every)
    return every[:limit]
