"""A composed decoding step of several models whose addresses stay: what a CUDA graph can hold, and what stays outside.

The embedded engine builds every step anew on the host (rows, positions, contexts of slots), so a graph cannot hold its
step as it is. Here its parts are put together in the way that one can: the models behind the engine's attention with a
`Replay`, the kernels' `stage` outside of the graph and their `launch` in it, and drawn tokens fed back on the device.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.gpu.device import DEVICE, Graph
from benchmarks.gpu.families import Shape
from motet.composers.plan import Plan
from motet.composers.rows import compose_rows
from motet.engines.torch.attention import STEP, Replay, Segment, StepContext
from motet.engines.torch.cache import SlotCache
from motet.kernels.decode import DecodeRows
from motet.kernels.logits import Logits
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.backend import DeviceStep, TritonKernels


class Composite:
    """R rows over K models; every row's streams stand at the same position, behind keys and values that are random.

    Args:
        length: keys that are read of every slot.
        context: tokens that are held at first, below `length`.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        shapes: Sequence[Shape],
        plan: Plan,
        rows: int,
        context: int,
        length: int,
    ) -> None:
        self.models, self.num_rows, self.context = models, rows, context
        self.ids = torch.zeros(1, rows, dtype=torch.int64, device=DEVICE)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
        self._contexts = [self._context(shape, model, length) for shape, model in zip(shapes, models, strict=True)]
        streams = [[k * rows + r for k in range(len(models))] for r in range(rows)]
        like = torch.empty(0, device=DEVICE)
        self._plan = compose_rows([plan] * rows, streams, like)
        self._params = SampleRows([1.0] * rows, [0] * rows, [1.0] * rows, [0.0] * rows)
        self._random = random.Random(0)
        self.start()

    def _context(self, shape: Shape, model: PreTrainedModel, length: int) -> StepContext:
        cache = SlotCache(shape.kv, model.dtype, torch.device(DEVICE))
        cache.resize(self.num_rows, length)
        for tensor in (*cache.arenas[0].keys, *cache.arenas[0].values):
            tensor.normal_()
        segments = [Segment(row, self.context, 1, row) for row in range(self.num_rows)]
        return StepContext(cache, segments, [], Replay(self.positions, length))

    def start(self) -> None:
        """The first tokens, positions and draws: what is run from here on gives the same."""
        self._random.seed(0)
        self.ids.copy_(torch.arange(3, 3 + self.num_rows)[None])
        self.positions.fill_(self.context)

    def forward(self, number: int) -> Tensor:
        """(R, V) logits of one model at the present tokens."""
        context = self._contexts[number]
        context.again()
        current = STEP.set(context)
        try:
            output = self.models[number](input_ids=self.ids, position_ids=self.positions[None], use_cache=False)
        finally:
            STEP.reset(current)
        return cast("Tensor", output.logits)[0]

    def forwards(self) -> list[Tensor]:
        return [self.forward(number) for number in range(len(self.models))]

    def rows(self) -> DecodeRows:
        """The next step's, with draws of its own."""
        uniform = [1.0 - self._random.random() for _ in range(self.num_rows)]
        return DecodeRows(self._plan, [-1] * self.num_rows, self._params, uniform)

    def feed(self, step: DeviceStep) -> None:
        """The drawn tokens are what all streams read next."""
        self.ids[0].copy_(step.out.token)
        self.positions += 1


def tokens_of(step: DeviceStep) -> list[int]:
    """On the host, where a server needs them: this waits for the step."""
    return cast("list[int]", step.out.token.tolist())


class EagerStep:
    """Launch by launch."""

    def __init__(self, composite: Composite) -> None:
        self._composite, self._kernels = composite, TritonKernels()

    def __call__(self) -> list[int]:
        logits = Logits(self._composite.forwards())  # held: the staged step knows their addresses alone
        step = self._kernels.stage(logits, self._composite.rows())
        self._kernels.launch(step)
        self._composite.feed(step)
        return tokens_of(step)


class GraphStep:
    """All members' forwards, the composition, the draw and its feedback as one graph.

    Before a replay `stage` writes the step's draws to where the graph reads them. It was captured before its logits had
    addresses; the first `stage` after the capture writes those to the same place.

    Raises:
        RuntimeError: a step of other launches than those that were captured.
    """

    def __init__(self, composite: Composite) -> None:
        self._composite, self._kernels = composite, TritonKernels()
        before = Logits(composite.forwards())  # for the calls that go before the capture
        self._step = self._kernels.stage(before, composite.rows())
        self._graph = Graph(self.launches)
        self._logits = Logits(self._graph.result)
        composite.start()

    def launches(self) -> list[Tensor]:
        """What the graph holds. Returns the members' logits."""
        logits = self._composite.forwards()
        self._kernels.launch(self._step)
        self._composite.feed(self._step)
        return logits

    def __call__(self) -> list[int]:
        staged = self._kernels.stage(self._logits, self._composite.rows())
        if (staged.batch.code, staged.batch.asks) != (self._step.batch.code, self._step.batch.asks):
            raise RuntimeError("the captured launches are not those of this step")
        self._graph.replay()
        return tokens_of(self._step)
