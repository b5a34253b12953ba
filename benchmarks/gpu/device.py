"""The device that is measured: graphs of its launches, time by its own clock, what it says of itself."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, cast

import torch

from benchmarks.gpu.stages import Line

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 3  # calls before a capture: kernels are compiled, libraries take their memory


class Graph:
    """Launches recorded once and replayed at the same addresses.

    Attributes:
        result: what `run` returned while it was recorded; a replay writes into it. It must be held: memory of the
            graph that nobody holds is used again within the graph.

    Raises:
        RuntimeError: something in `run` waits for the device, or copies from pageable memory.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.result = run()

    def replay(self) -> None:
        self._graph.replay()


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of one of `times` calls by the wall clock, the device's work included."""
    wait()
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - began) / times


def device_seconds(call: Callable[[], object], times: int = 1) -> float:
    """The same by the device's clock: how long the calls' launches took it, gaps between them included."""
    if DEVICE == "cpu":
        return seconds_of(call, times)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    wait()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end) / times


def copy_rate() -> float:
    """Bytes per second of a large copy, reads and writes counted: the ceiling of a run."""
    source = torch.empty(1 << (31 if DEVICE == "cuda" else 24), dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    device_seconds(lambda: target.copy_(source), 2)
    return 2 * source.numel() / statistics.median(device_seconds(lambda: target.copy_(source), 4) for _ in range(7))


def described(rate: float) -> Line:
    """What the device is, and the `copy_rate` of this run. The driver's version is what `nvidia-smi` says."""
    if DEVICE == "cpu":
        return {"device": "cpu", "graphs": "skipped: there is no CUDA device", "copy_gb_per_s": round(rate / 1e9, 1)}
    found = cast("Any", torch.cuda).get_device_properties(0)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return {
        "device": found.name,
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "l2_mb": round(l2_bytes() / 1e6, 1),
        "cuda": str(torch.version.cuda),
        "copy_gb_per_s": round(rate / 1e9, 1),
        "driver": driver,
    }


def l2_bytes() -> int:
    """Of the device's last cache; what fits in there is read from there when it is read again."""
    if DEVICE == "cpu":
        return 0
    return int(cast("Any", torch.cuda).get_device_properties(0).L2_cache_size)
