"""YAML: names given twice, numbers as in YAML 1.2, documents without bounds; overrides, and what is said of faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from motet.settings import Setting, SettingsError, override, read_mapping, read_yaml, sentences


@pytest.mark.parametrize("text", ["1e-1", "1E3", "-2e+2", ".5e1", "1.e2"])
def test_exponents(text: str) -> None:
    assert read_yaml(text) == float(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("+3", 3),
        ("0o10", 8),
        ("0xff", 255),
        ("-.inf", -float("inf")),
        ("12:30:00", "12:30:00"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


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


def test_an_override_changes_one_place_of_an_alias() -> None:
    tree = read_yaml("a: &x {n: 1, items: [{n: 1}]}\nb: *x")
    assert override(tree, ["b.n=2", "b.items.0.n=3", "c.d=e"]) == []
    assert tree == {"a": {"n": 1, "items": [{"n": 1}]}, "b": {"n": 2, "items": [{"n": 3}]}, "c": {"d": "e"}}


def test_overrides_that_lead_nowhere() -> None:
    tree: dict[str, Any] = {"a": 1, "b": [1], "c": None}
    assert override(tree, ["a", "a..b=1", "a.b=1", "a.b.c=1", "b.1=1", "b.-1=1", "c.d=1", "d=[1"])[:-1] == [
        "'a': overrides are written dotted.name=value",
        "'a..b=1': overrides are written dotted.name=value",
        "a.b: 'b' cannot be set in a value without names",
        "a.b.c: 'b' is looked for in a value without names",
        "b.1: '1' is no index of a list of 1",
        "b.-1: '-1' is no index of a list of 1",
    ]
    assert tree == {"a": 1, "b": [1], "c": {"d": 1}}


class Inner(Setting, frozen=True):
    type: Literal["inner"] = "inner"
    size: int = 1


class Other(Setting, frozen=True):
    type: Literal["other"] = "other"
    kind: Literal["near", "far"] = "near"


class Outer(Setting, frozen=True):
    parts: list[Inner] = Field(default_factory=list["Inner"])
    chosen: Inner | Other = Field(default=Inner(), discriminator="type")


def faults(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as refusal:
        Outer.model_validate(tree)
    return sentences(refusal.value.errors(include_url=False), Outer, tree, lambda problem: problem["msg"])


def test_faults_bear_the_names_that_the_user_wrote() -> None:
    assert faults({"chosen": {"type": "other", "kin": 1}, "part": []}) == [
        "chosen.kin: unknown field. Did you mean 'kind'? Allowed: type, kind",
        "part: unknown field. Did you mean 'parts'? Allowed: parts, chosen",
    ]
    assert faults({"chosen": {"type": "othr"}}) == [
        "chosen.type: 'othr' is unknown. Did you mean 'other'? Allowed: inner, other"
    ]
    assert faults({"chosen": {}}) == ["chosen.type: required"]
    assert faults({"chosen": {"type": "other", "kind": "nea"}}) == [
        "chosen.kind: 'nea' is not allowed. Did you mean 'near'? Allowed: near, far"
    ]
    assert faults({"chosen": {"type": "inner", "size": "x"}})[0].startswith(
        "chosen.size: Input should be a valid integer"
    )


def test_files_that_hold_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    for text, said in (
        ("- a", "a mapping with 'x' is expected"),
        ("{a: 1, a: 2}", "'a' is given twice"),
        ("[", "YAML"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=said):
            read_mapping(file, "with 'x'")
    with pytest.raises(SettingsError, match="No such file"):
        read_mapping(tmp_path / "none.yaml", "with 'x'")
