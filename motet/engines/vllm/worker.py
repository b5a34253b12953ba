"""vLLM's worker with the project's own sampler in its V1 runner, ready for pipeline stages; nothing else is changed.

vLLM's sampler draws for requests that name no composition. For ours it would have to get the drawn token as the only
possible one, knows nothing of linked requests, and would verify drafts against a distribution that a draft has changed.
So the composer draws (`composition`), and the sampler objects of the runner hand its step to vLLM.
"""

from __future__ import annotations

from typing import Any

from motet.engines.vllm.internals import touch
from motet.engines.vllm.requests import row_or_fault
from motet.engines.vllm.sampler import StepSampler, StepVerifier
from motet.engines.vllm.stages import prepare
from motet.engines.vllm.table import Row, Table, table_of

_Worker: Any = touch("CPUWorker" if touch("current_platform").is_cpu() else "Worker")


class ComposedWorker(_Worker):
    """Named in vLLM's `worker_cls`."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        if isinstance(runner, touch("GPUModelRunner")):  # the second runner asks the model for its state instead
            bind(runner, table_of(runner.compilation_config.static_forward_context))

    def compile_or_warm_up_model(self) -> Any:
        times = _Worker.compile_or_warm_up_model(self)
        if isinstance(self.model_runner, touch("GPUModelRunner")):
            prepare(self.model_runner)
        return times


def bind(runner: Any, table: Table) -> None:
    """The table's batch is the runner's, and the runner's samplers take what the composer draws."""
    table.batch = RunnerBatch(runner, table)
    if hasattr(runner, "sampler"):  # not on the first stages of a pipeline
        runner.sampler = StepSampler(runner.sampler, table)
    if hasattr(runner, "rejection_sampler"):
        runner.rejection_sampler = StepVerifier(runner.rejection_sampler, table)


class RunnerBatch:
    """See `table.Batch`: the runner's own state of its requests, which is up to date in every forward."""

    def __init__(self, runner: Any, table: Table) -> None:
        self._runner = runner
        self._table = table
        self._rows: dict[str, tuple[Any, Row | None]] = {}

    def row(self, index: int) -> Row | None:
        names = self._runner.input_batch.req_ids
        if index >= len(names):
            return None
        state = self._runner.requests[names[index]]
        known = self._rows.get(names[index])
        if known is not None and known[0] is state.output_token_ids:
            return known[1]
        self._forget_ended()
        table = self._table
        extra = None if state.sampling_params is None else state.sampling_params.extra_args
        row = row_or_fault(extra, state.prompt_token_ids or (), state.output_token_ids, list(table.members), table.ends)
        self._rows[names[index]] = (state.output_token_ids, row)
        return row

    def rows(self) -> list[Row | None]:
        return [self.row(index) for index in range(len(self._runner.input_batch.req_ids))]

    def _forget_ended(self) -> None:
        requests = self._runner.requests
        self._rows = {name: entry for name, entry in self._rows.items() if name in requests}
