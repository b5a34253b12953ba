"""YAML: names given twice, numbers as in YAML 1.2, documents without bounds."""

from __future__ import annotations

import pytest
import yaml

from motet.settings import read_yaml


@pytest.mark.parametrize("text", ["1e-1", "1E3", "-2e+2", ".5e1", "1.e2"])
def test_exponents(text: str) -> None:
    assert read_yaml(text) == float(text)


def test_words_and_versions_stay_text() -> None:
    assert read_yaml("{a: e5, b: 1.2.3, c: '1e3', d: 1e}") == {"a": "e5", "b": "1.2.3", "c": "1e3", "d": "1e"}


def test_an_empty_document() -> None:
    assert read_yaml("") is None


def test_aliases_and_merged_mappings() -> None:
    tree = read_yaml("base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\nsame: *b")
    assert tree["own"] == {"x": 1, "y": 3}
    assert tree["same"] == {"x": 1, "y": 2}


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a: 1, a: 2}", "'a' is given twice"),
        ("[" * 20_000, "nested too deeply"),
        ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000))]), "aliases stand for more"),
        (bomb(), "aliases stand for more"),
        ("&a [*a]", "aliases stand for more"),
    ],
)
def test_documents_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        read_yaml(text)
