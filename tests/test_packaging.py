"""What is installed, what imports what, and what the engine needs."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# who may import whom, from left to right in the architecture
ALLOWED: dict[str, set[str]] = {
    "kernels": {"kernels"},
    "models": {"models"},
    "composers": {"composers", "kernels"},
    "experts": {"experts", "composers", "models"},
    "training": {"training", "composers", "kernels", "experts", "models", "settings"},
    "server": {"server", "composers", "kernels", "experts", "models", "settings"},
    "evaluation": {"evaluation", "server", "composers", "kernels", "experts", "training", "models", "settings"},
    "audit": {"audit", "server", "composers", "kernels", "experts", "models", "training", "settings"},
}


def imported(file: Path) -> set[str]:
    """The rooms of `motet` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("motet.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    for file in (ROOT / "motet" / room).rglob("*.py"):
        assert imported(file) <= ALLOWED[room], file.relative_to(ROOT)


def test_engine_plan_and_kernels_need_torch_and_transformers_alone() -> None:
    """A machine without the server's libraries (a GPU box, say) can run the engine and its benchmarks."""
    script = """
import sys
for name in ("pydantic", "pydantic_settings", "fastapi", "starlette", "uvicorn", "openai", "llguidance"):
    sys.modules[name] = None
import motet.kernels.reference, motet.kernels.sampling, motet.composers.plan, motet.composers.rows
import motet.engines.base, motet.engines.torch
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
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "motet").rglob("*.py")}
    assert modules <= set(names), "every module is in the wheel"
    assert "motet/py.typed" in names, "type checkers of users read our annotations"
    assert any(name.endswith("licenses/LICENSE") for name in names)
