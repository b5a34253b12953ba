"""The run that is prepared for a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from benchmarks.gpu import bandwidth, composite, correctness
from benchmarks.gpu.__main__ import FULL, SECONDS, TINY, run
from benchmarks.gpu.composite import Composite, EagerStep, GraphStep
from benchmarks.gpu.families import FAMILIES, model_of
from benchmarks.gpu.stages import GRACE, Budget, Stage
from benchmarks.gpu.steps import PLAN
from motet.kernels.triton import launch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy on −inf − −inf

FAKE = """
import json, sys, time
for name in sys.argv[4:]:
    if name == "crash": sys.exit(3)
    if name == "hang": time.sleep(60)
    if name == "noise": print("loading…", flush=True)
    line = {"table": "correctness", "group": "g", "check": name, "held": "yes", "nats": 0.5}
    if name != "noise": print(json.dumps(line), flush=True)
"""


def test_a_stage_that_fails_loses_no_other(tmp_path: Path) -> None:
    """Nor what it has told before: one crashes, one hangs and is killed, the next stage runs."""
    stages = (
        Stage("first", "fake", 1.0, (("a", "noise", "crash", "never"), ("b", "hang"), ("c",))),
        Stage("second", "fake", 20.0, (("d",),)),
    )
    line = json.loads(run(tmp_path, stages, [sys.executable, "-c", FAKE], tiny=True))
    found = line["results"]["stages"]
    assert found["first"]["problems"] == [
        "a noise crash never: ended with 3",
        "b hang: killed, its seconds were over",
    ]
    assert found["second"]["problems"] == []
    assert line["results"]["correctness"] == {"held": 4, "worst_nats": 0.5, "failed": []}
    with (tmp_path / "correctness.csv").open() as file:
        assert {row["check"] for row in csv.DictReader(file)} == {"a", "b", "c", "d"}
    assert json.loads((tmp_path / "gpu.json").read_text())["results"] == line["results"]
    assert "loading…" in (tmp_path / "log.txt").read_text()


def test_stages_fit_into_nine_minutes_and_leave_nothing_out() -> None:
    assert sum(stage.seconds for stage in FULL) <= SECONDS <= 9 * 60 - 15
    assert all(stage.seconds > GRACE for stage in FULL)
    assert [stage.program for stage in TINY] == list(dict.fromkeys(stage.program for stage in FULL))
    (small,) = (stage for stage in TINY if stage.program == "correctness")
    assert {name for part in small.parts for name in part} <= set(correctness.CHECKS)
    measured = bandwidth.cases(tiny=False)
    assert len(set(measured)) == 3 * 3 * 3 * 6
    checked = [name for count in bandwidth.members(tiny=False) for name in correctness.shapes(count, tiny=False)]
    assert sorted(checked) == sorted(map(str, measured)), "whatever is measured is checked first"


def test_a_failed_check_is_told_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def off() -> float:
        raise AssertionError("Tensor-likes are not close!\n\nMismatched elements: 1 / 2")

    checks: dict[str, Callable[[], float | None]] = {"a": lambda: 0.25, "b": off, "c": lambda: None}
    monkeypatch.setattr(correctness, "CHECKS", {"some": lambda tiny: checks})  # type: ignore[misc]
    lines = list(correctness.lines(["some"], Budget(60), tiny=True))
    assert [(line["check"], line["nats"]) for line in lines] == [("a", 0.25), ("b", None), ("c", None)]
    assert [line["held"].split(":")[0] for line in lines] == ["yes", "no", "yes"]
    assert "not close! Mismatched elements: 1 / 2" in lines[1]["held"]
    assert next(correctness.lines(["some"], Budget(-1), tiny=True))["held"] == "not run: no time was left"


@torch.inference_mode()
def test_the_shapes_that_are_measured_are_checked() -> None:
    case = next(case for case in bandwidth.grid(tiny=True, count=3) if bandwidth.kind_of(case) == "masked")
    assert bandwidth.checked(case) < 1e-4
    line = bandwidth.measured(case, 1e9, 1)
    assert line["floor_us"] == pytest.approx(1e6 * 2 * 300 * 3 * 2 / 1e9)
    assert line["motet us"] is None, "no graph without CUDA"
    assert line["motet call us"] > 0
    assert "failed" not in line


# what reads values on the host (`tolist` resolves first), or makes tensors there
ON_THE_HOST = {"item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "resolve_conj", "lift_fresh"}


class OnTheDevice(TorchDispatchMode):
    """Refuses what a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        name = str(func).removeprefix("aten.").partition(".")[0]
        assert name not in ON_THE_HOST, f"{func} waits"
        return func(*args, **(kwargs or {}))


class Recorded:
    """In the place of a graph: what would be captured runs once."""

    def __init__(self, run: Callable[[], Any]) -> None:
        with OnTheDevice():
            self.result = run()


def tiny_composite() -> Composite:
    shapes = FAMILIES["tiny"]
    return Composite([model_of(shape, seed) for seed, shape in enumerate(shapes)], shapes, PLAN, 2, 8, 32)


@torch.inference_mode()
def test_what_a_graph_holds_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_composite()
    step = EagerStep(made)
    first = [step(), step()]
    made.start()
    assert [step(), step()] == first, "a start gives the same draws"
    assert made.positions.tolist() == [10, 10]
    launched: list[str] = []

    def noted(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
        launched.append(kernel.fn.__name__)

    monkeypatch.setattr(launch, "_run", noted)  # kernels do not pass torch's dispatcher
    monkeypatch.setattr(composite, "Graph", Recorded)
    GraphStep(made)
    assert launched == ["scan", "finish"]
    reads: list[Callable[[], object]] = [
        lambda: made.ids[0, 0].item(),
        lambda: cast("list[object]", made.ids.tolist()),
        lambda: bool(made.ids.any()),
        lambda: torch.tensor([1]),
    ]
    for read in reads:
        with pytest.raises(AssertionError, match="waits"), OnTheDevice():
            read()
