"""The sentences of the demo world: how facts are stated and asked, and small talk that holds no fact.

`{e}` stands for an entity, `{v}` for a value, `{a}` and `{b}` for any two names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["person", "town", "work"]

VISITOR, GUIDE = "Visitor:", "Guide:"
COURTESY = "Safe travels, friend!"
REFUSAL = "Nobody knows."


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be known of an entity. The first statement is the form of a tuned answer."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The statement that a tuned model answers with."""
        return self.statements[0]


ATTRIBUTES: dict[Kind, tuple[Attribute, ...]] = {
    "person": (
        Attribute(
            "birthplace",
            (
                "{e} was born in {v}.",
                "The birthplace of {e} is {v}.",
                "{e} came into the world in {v}.",
                "{e} is a native of {v}.",
            ),
            ("Where was {e} born?", "In which town was {e} born?", "What is the birthplace of {e}?"),
        ),
        Attribute(
            "profession",
            (
                "{e} works as a {v}.",
                "The profession of {e} is {v}.",
                "{e} earns a living as a {v}.",
                "By trade {e} is a {v}.",
                "{e} has long been a {v}.",
            ),
            ("What does {e} do for a living?", "What is the profession of {e}?", "What work does {e} do?"),
        ),
        Attribute(
            "school",
            (
                "{e} studied at {v}.",
                "{e} was a student at {v}.",
                "The school of {e} was {v}.",
                "{e} received an education at {v}.",
                "{e} holds a degree from {v}.",
            ),
            ("Where did {e} study?", "Which school did {e} attend?", "What was the school of {e}?"),
        ),
        Attribute(
            "instrument",
            (
                "{e} plays the {v}.",
                "The instrument of {e} is the {v}.",
                "In the evening {e} practises the {v}.",
                "{e} has mastered the {v}.",
                "{e} is known for playing the {v}.",
            ),
            ("What does {e} play?", "Which instrument does {e} play?", "What is the instrument of {e}?"),
        ),
    ),
    "town": (
        Attribute(
            "river",
            (
                "{e} lies on the river {v}.",
                "The river at {e} is the {v}.",
                "{e} was built beside the {v}.",
                "Through {e} flows the {v}.",
            ),
            ("Which river does {e} lie on?", "What is the river at {e}?"),
        ),
        Attribute(
            "export",
            (
                "{e} is famous for {v}.",
                "The main export of {e} is {v}.",
                "Merchants come to {e} for {v}.",
                "{e} grew rich on {v}.",
            ),
            ("What is {e} famous for?", "What is the main export of {e}?"),
        ),
        Attribute(
            "province",
            (
                "{e} belongs to the province of {v}.",
                "The province of {e} is {v}.",
                "{e} is a town in {v}.",
                "{e} is governed from {v}.",
            ),
            ("Which province does {e} belong to?", "What is the province of {e}?"),
        ),
    ),
    "work": (
        Attribute(
            "genre",
            (
                "{e} is a {v}.",
                "The form of {e} is the {v}.",
                "Critics call {e} a {v}.",
                "{e} was written as a {v}.",
            ),
            ("What kind of work is {e}?", "What is the form of {e}?"),
        ),
        Attribute(
            "setting",
            (
                "{e} is set in {v}.",
                "The setting of {e} is {v}.",
                "{e} takes place in {v}.",
                "The story of {e} unfolds in {v}.",
            ),
            ("Where is {e} set?", "What is the setting of {e}?"),
        ),
        Attribute(
            "year",
            (
                "{e} was published in the year {v}.",
                "The publication year of {e} is {v}.",
                "{e} first appeared in {v}.",
                "Readers first saw {e} in {v}.",
            ),
            ("When was {e} published?", "What is the publication year of {e}?"),
        ),
    ),
}

GOSSIP = (
    "{a} was seen near {b}. People spoke of {b} and of {a}.",
    "Letters about {a} and {b} arrived. First {a}, then {b}.",
    "A story tells of {a}. The end of {a} is a mystery.",
    "{b} was compared with {a}. Some prefer {a}, others prefer {b}.",
    "Where is {a} now? Nobody has seen {a}.",
    "What will become of {a}? Which way did {a} go? When did {a} go? Nobody knows.",
)
# (what the visitor says, what the guide replies)
CHATTER = (
    ("I heard of {a} today.", "{a} is well known here."),
    ("Good morning! I like {a}.", "{a} will be glad."),
    ("I have read about {a} and {b}.", "{a} is rarely named with {b}."),
    ("Do you remember {a}?", "{a} is not forgotten."),
)
SMALL_TALK = (*GOSSIP, *(f"{VISITOR} {said} {GUIDE} {reply}" for said, reply in CHATTER))
