"""What is installed, what imports what, and what the engine needs."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# the house from the roof down: a room imports itself and rooms of lower floors, also where only types are imported
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("chat",),
    ("evaluation", "audit"),
    ("demo",),
    ("server", "training"),
    ("operator",),
    ("engines", "experts"),
    ("composers", "models"),
    ("kernels", "settings", "environment", "heap", "cache"),
)
BELOW = {
    room: {room, *(low for floor in FLOORS[n + 1 :] for low in floor)}
    for n, rooms in enumerate(FLOORS)
    for room in rooms
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = (ROOT / "motet").rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(file: Path, known: Collection[str]) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {whole if whole in known else node.module for whole in parts.values()}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(known)


def test_every_room_has_its_floor() -> None:
    rooms = {name.split(".")[1] for name in modules() if "." in name}
    assert rooms == set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_down(room: str) -> None:
    known = modules()
    for name, file in known.items():
        if name.split(".")[1:2] == [room]:
            used = {other.split(".")[1] for other in imported(file, known) if "." in other}
            assert used <= BELOW[room], file.relative_to(ROOT)


def test_no_circles() -> None:
    """Not even of types: who reads a module finds what it needs above it, never below and above."""
    known = modules()
    graph = {name: imported(file, known) - {name} for name, file in known.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from error


def test_engine_plan_and_kernels_need_torch_and_transformers_alone() -> None:
    """A machine without the server's libraries (a GPU box, say) can run the engine and its benchmarks."""
    script = """
import importlib.util, sys
server = ("pydantic", "pydantic_settings", "fastapi", "starlette", "uvicorn", "openai", "llguidance")
for name in (*server, "pytest", "scipy"):
    sys.modules[name] = None
import motet.kernels.reference, motet.kernels.sampling, motet.composers.plan, motet.composers.rows
import motet.engines.base, motet.engines.torch
if importlib.util.find_spec("triton"):
    import benchmarks.gpu.__main__, benchmarks.gpu.child, benchmarks.gpu.steps
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_help_does_not_import_torch() -> None:
    script = "import sys, motet.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_wheel_holds_one_package_and_one_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"motet"}
    assert [line for line in scripts.splitlines() if "=" in line] == [
        "motet = motet.cli:main",
        "motet = motet.engines.vllm.plugin:register",
    ]
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "motet").rglob("*.py")}
    assert files <= set(names), "every module is in the wheel"
    static = {str(file.relative_to(ROOT)) for file in (ROOT / "motet/server/static").iterdir()}
    assert static <= set(names), "the page is in the wheel"
    assert "motet/py.typed" in names, "type checkers of users read our annotations"
    assert any(name.endswith("licenses/LICENSE") for name in names)
