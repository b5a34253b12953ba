"""`motet-client`: its classes are the server's schema, and what they write is what the server reads."""

from __future__ import annotations

import inspect
import keyword
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, get_args

import pytest

import motet_client
from docs import client
from motet.composers.spec import parse_composition, strategy_kinds, strategy_names
from motet.server.shapes.requests import TraceOptions
from motet_client import (
    Compose,
    Composition,
    Eft,
    Guidance,
    ProxyTuning,
    RoleObject,
    RuleAdapter,
    Timing,
    Unlearn,
    compose,
)
from motet_client.spec import Spec
from tests.composers.test_laws import CASES
from tests.composers.test_spec import TRIED

ROOT = Path(__file__).parents[2]
CLASSES: dict[str, type[Spec]] = {kind.strategy: kind for kind in get_args(Composition)}


def test_the_classes_are_what_the_schema_says() -> None:
    assert client.FILE.read_text("utf-8") == client.module(), "run `python -m docs.generate`"


def test_every_strategy_has_its_class() -> None:
    assert set(CLASSES) == set(strategy_names())
    for name, kind in strategy_kinds().items():
        assert inspect.getdoc(CLASSES[name]) == inspect.cleandoc(kind.__doc__ or "")


def typed(name: str, body: dict[str, Any]) -> Any:
    """The strategy's class with the fields of a JSON; stacked parts are objects of their classes, too."""
    fields = {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in body.items() if key != "strategy"}
    if "compose" in fields:
        fields["compose"] = [typed(part["strategy"], part) for part in fields["compose"]]
    return CLASSES[name](**fields)


@pytest.mark.parametrize("name", strategy_names())
def test_what_a_class_writes_is_the_same_composition(name: str) -> None:
    """Those that leave out what they may, and every case of the laws."""
    laws = [case.value(0.5, 0.25) for case in CASES]
    bodies = [TRIED[name], *(body for body in laws if body.get("strategy") == name)]
    for body in bodies:
        sent = compose(typed(name, body))["extra_body"]["composition"]
        assert parse_composition(sent) == parse_composition({"strategy": name, **body})


def test_objects_inside_objects() -> None:
    blind = RoleObject(model="small", prompt="")
    stack = Compose(
        compose=(
            ProxyTuning(expert="small-chat", antiexpert=blind, schedule=Timing(warmup=3)),
            Unlearn(assistant="small", filter=None),
            RuleAdapter(token_offsets={"id:7": -1.5}),
        )
    )
    by_hand = {
        "compose": [
            {
                "strategy": "proxy_tuning",
                "expert": "small-chat",
                "antiexpert": {"model": "small", "prompt": ""},
                "schedule": {"warmup": 3},
            },
            {"strategy": "unlearn", "assistant": "small", "filter": None},
            {"strategy": "rules", "token_offsets": {"id:7": -1.5}},
        ]
    }
    assert parse_composition(stack.as_dict()) == parse_composition(by_hand)


def test_the_other_fields_of_a_request() -> None:
    told = compose(Guidance(scale=3), trace=motet_client.TraceOptions(top=2), top_k=5)["extra_body"]
    assert told == {
        "composition": {"strategy": "guidance", "scale": 3},
        "trace": {"top": 2, "members": False},
        "top_k": 5,
    }
    TraceOptions.model_validate(told["trace"])
    assert compose(trace=True) == {"extra_body": {"trace": True}}


def test_roles_are_required_by_name() -> None:
    for call in (lambda: ProxyTuning(expert="a"), lambda: ProxyTuning("a", "b"), lambda: Eft(tuned="a", refrence="b")):  # pyright: ignore
        with pytest.raises(TypeError):
            call()


def test_an_answer_that_is_not_motets() -> None:
    with pytest.raises(ValueError, match="Motet's"):
        motet_client.composed(object())


def test_the_wheel_needs_nothing(tmp_path: Path) -> None:
    """One package with its types, without dependencies; it imports where there is nothing else."""
    folder = ROOT / "clients" / "python"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=folder, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(archive.read(name).decode() for name in names if name.endswith("METADATA"))
    files = {str(file.relative_to(folder)) for file in (folder / "motet_client").rglob("*.py")}
    assert {*files, "motet_client/py.typed"} == {name for name in names if ".dist-info/" not in name}
    assert [line for line in about.splitlines() if line.startswith("Requires-Dist") and "extra" not in line] == []
    script = f"import sys; sys.path.insert(0, {str(wheel)!r}); from motet_client import ProxyTuning, compose"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
