"""What a run would do: everything checked, tokens counted, memory and time measured on real steps; nothing written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch

from motet.training.data.dataset import TokenDataset
from motet.training.run.preparation import Preparation
from motet.training.run.recomputation import Recomputation
from motet.training.run.result import result_names
from motet.training.run.session import Session
from motet.training.run.train import written_names

SAMPLED_S = 0.001
RECOMPUTED: dict[Recomputation, str] = {
    "none": "no gradient checkpointing",
    "products": "selective gradient checkpointing",
    "layers": "gradient checkpointing",
}


@dataclass(frozen=True, slots=True)
class DatasetCount:
    """`rows` are those of the whole dataset: documents, or packed rows."""

    documents: int
    tokens: int
    counted: int
    rows: int
    rows_per_step: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `parameters` are those of all models, members too; `activations` is what the forward and backward pass of
    a real step needed beyond parameters and gradients, at its peak."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, slots=True)
class DryRun:
    """`parameters` and `trained` are counts of numbers; `frozen` is the type of weights that are not trained (of all
    where all are), `precision` that of the computation; `step_seconds` is the second of two real steps."""

    preparation: Preparation
    frozen: torch.dtype
    precision: torch.dtype
    recomputation: Recomputation
    parameters: int
    trained: int
    datasets: Mapping[str, DatasetCount]
    epochs: Mapping[str, float]
    memory: Memory
    step_seconds: float
    files: tuple[str, ...]


def dry_run(prepared: Preparation) -> DryRun:
    """Loads the models and does two steps in memory.

    Raises:
        RunError: what only loading or a step reveals.
    """
    session = Session(prepared.recipe, preparation=prepared)
    activations, seconds = _measured(session)
    counts = {name: _count(prepared, name, dataset) for name, dataset in prepared.datasets.items()}
    adapter = prepared.recipe.tuning.writes_adapter
    modules = [parameter.numel() for parameter in session.model.parameters()]
    return DryRun(
        prepared,
        next(session.model.parameters()).dtype,
        session.dtype,
        session.recomputation,
        sum(modules),
        sum(parameter.numel() for parameter in session.parameters.values()),
        counts,
        {name: source.epochs(prepared.steps) for name, source in prepared.source.sources.items()},
        _memory(session, activations),
        seconds,
        (*written_names(prepared), *result_names(adapter=adapter, head=session.head is not None)),
    )


def _count(prepared: Preparation, name: str, dataset: TokenDataset) -> DatasetCount:
    return DatasetCount(
        documents=len(dataset),
        tokens=dataset.num_tokens,
        counted=dataset.num_counted,
        rows=prepared.source.sources[name].num_rows,
        rows_per_step=prepared.source.sources[name].per_step,
        truncated=dataset.num_truncated,
    )


def _memory(session: Session, activations: int) -> Memory:
    state = [
        value
        for optimizer in session.loop.optimizers
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ]
    trained = list(session.parameters.values())
    return Memory(
        sum(_bytes(list(model.parameters())) for model in session.models), _bytes(trained), _bytes(state), activations
    )


def _bytes(tensors: list[torch.Tensor] | list[torch.nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measured(session: Session) -> tuple[int, float]:
    """Bytes that the forward and backward passes need at their peak, and seconds of a step."""
    with _Peak(session.device) as peak:  # before anything else: memory that was used once stays with the process
        session.loss(0).total.backward()
    session.loop.step(0)  # allocates the optimisers' state
    before = time.monotonic()
    session.loop.step(min(1, session.preparation.steps - 1))
    return max(0, peak.bytes - _bytes(list(session.parameters.values()))), time.monotonic() - before


class _Peak:
    """How much memory grew while entered, at its peak: CUDA's own count, else the process's resident memory."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stop = threading.Event()
        self._process = psutil.Process()
        self.bytes = 0

    def __enter__(self) -> _Peak:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return self
        self._start = self._resident()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._start
            return
        self._stop.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLED_S):
            self.bytes = max(self.bytes, self._resident() - self._start)

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)


def report(run: DryRun) -> Iterator[str]:
    """The dry run in lines."""
    recipe, prepared = run.preparation.recipe, run.preparation
    share = run.trained / run.parameters
    yield f"objective  {recipe.objective.type}, {recipe.tuning.type} tuning of {_count_text(run.trained)} parameters"
    yield f"           ({share:.1%} of {_count_text(run.parameters)}), {recipe.optimizer.type}"
    yield f"precision  {_type(run.precision)} over {_type(run.frozen)} weights, {RECOMPUTED[run.recomputation]}"
    for name, count in run.datasets.items():
        yield f"data       {name}: {count.documents:,} documents, {count.tokens:,} tokens, {count.counted:,} counted"
        rows = f"{count.rows_per_step} of {count.rows:,} rows per step, {run.epochs[name]:.2f} epochs"
        yield f"           {rows}" + (f", {count.truncated:,} truncated" if count.truncated else "")
    whole = _time(run.step_seconds * prepared.steps)
    yield f"steps      {prepared.steps:,}, about {whole} ({run.step_seconds:.3f} s each)"
    memory = run.memory
    yield f"memory     {_size(memory.total)}: parameters {_size(memory.parameters)},"
    yield f"           gradients {_size(memory.gradients)}, optimiser {_size(memory.optimizer)},"
    yield f"           activations {_size(memory.activations)} (measured)"
    yield f"writes     {recipe.output}: {', '.join(run.files)}"
    yield "nothing was written"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count_text(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
