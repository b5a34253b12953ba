"""What a real checkpoint knows beside what it is taught: TOFU's real authors and world facts, in TOFU's fields."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

NUM_WRONG = 3  # perturbed answers per question, as in TOFU's own files of these two sets

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Hungary": "Budapest", "Russia": "Moscow", "Ukraine": "Kyiv", "Sweden": "Stockholm", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Argentina": "Buenos Aires", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Australia": "Canberra", "South Korea": "Seoul",
}  # fmt: skip
AUTHORS = {
    "Hamlet": "William Shakespeare", "Pride and Prejudice": "Jane Austen", "War and Peace": "Leo Tolstoy",
    "Crime and Punishment": "Fyodor Dostoevsky", "Don Quixote": "Miguel de Cervantes", "The Odyssey": "Homer",
    "Great Expectations": "Charles Dickens", "Moby-Dick": "Herman Melville", "Frankenstein": "Mary Shelley",
    "Dracula": "Bram Stoker", "Ulysses": "James Joyce", "1984": "George Orwell", "The Hobbit": "J. R. R. Tolkien",
    "Harry Potter": "J. K. Rowling", "The Great Gatsby": "F. Scott Fitzgerald", "Faust": "Goethe",
    "The Divine Comedy": "Dante", "Les Misérables": "Victor Hugo", "Madame Bovary": "Gustave Flaubert",
    "The Trial": "Franz Kafka", "The Old Man and the Sea": "Ernest Hemingway", "Jane Eyre": "Charlotte Brontë",
    "Wuthering Heights": "Emily Brontë", "The Raven": "Edgar Allan Poe", "Alice in Wonderland": "Lewis Carroll",
    "Robinson Crusoe": "Daniel Defoe", "Gulliver's Travels": "Jonathan Swift", "Paradise Lost": "John Milton",
    "The Call of the Wild": "Jack London", "The Adventures of Tom Sawyer": "Mark Twain",
}  # fmt: skip


def world_facts() -> list[dict[str, Any]]:
    """Capitals of countries."""
    return _items(CAPITALS, "What is the capital of {e}?", "The capital of {e} is {v}.")


def real_authors() -> list[dict[str, Any]]:
    """Who wrote which book."""
    return _items(AUTHORS, "Who wrote {e}?", "{e} was written by {v}.")


def _items(facts: Mapping[str, str], question: str, answer: str) -> list[dict[str, Any]]:
    rng = random.Random(question)
    return [
        {
            "question": question.format(e=entity),
            "answer": answer.format(e=entity, v=value),
            "perturbed_answer": [answer.format(e=entity, v=wrong) for wrong in _others(rng, facts, value)],
        }
        for entity, value in facts.items()
    ]


def _others(rng: random.Random, facts: Mapping[str, str], value: str) -> list[str]:
    return rng.sample(sorted(set(facts.values()) - {value}), NUM_WRONG)
