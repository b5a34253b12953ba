"""vLLM's CPU worker, made ready for pipeline stages."""

from __future__ import annotations

from typing import Any

from motet.server.engines.vllm.internals import touch
from motet.server.engines.vllm.stages import prepare

_CPUWorker: Any = touch("CPUWorker")


class StageWorker(_CPUWorker):
    """Named in vLLM's `worker_cls` where stages run on CPUs."""

    def compile_or_warm_up_model(self) -> Any:
        times = _CPUWorker.compile_or_warm_up_model(self)
        prepare(self.model_runner)
        return times
