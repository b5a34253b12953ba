"""A member's weights in fewer bits beside its own: it guesses ahead with them, and its own weights verify.

Decoding is bound by reading weights: in 4 bits a guess costs a third of a step. The rougher weights read and write the
member's own slots; verifying writes the same positions anew, so that nothing of them stays, and answers are those of
the member's own weights (self-speculation: Zhang et al. 2024, arXiv:2309.08168; with quantised weights: Tiwari et al.
2025, arXiv:2502.10424).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.engines.torch.packing import PackedLinear, ProjectionPart, bias_of, is_plain
from motet.engines.torch.quantization import QuantizationError, check_kernel, store
from motet.engines.torch.quantized import QuantizedLinear
from motet.models.info import Quantization

_GUESSING: ContextVar[bool] = ContextVar("guessing", default=False)


@contextmanager
def guessing() -> Generator[None]:
    """Forwards within read the rougher weights, where there are any."""
    current = _GUESSING.set(True)
    try:
        yield
    finally:
        _GUESSING.reset(current)


def is_guessing() -> bool:
    return _GUESSING.get()


class TwofoldLinear(nn.Module):
    """A linear, and the same with its weight in fewer bits.

    Attributes:
        exact: what stood here.
        rough: what guesses are made with.
    """

    def __init__(self, exact: nn.Module, rough: QuantizedLinear) -> None:
        super().__init__()
        self.exact, self.rough = exact, rough

    def __getattr__(self, name: str) -> Any:
        """Some families look at a linear's weight, for its dtype."""
        found = vars(self)["_modules"]
        if name in found or "exact" not in found:
            return super().__getattr__(name)
        return getattr(found["exact"], name)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (self.rough if is_guessing() else self.exact)(x)
        return found


def add_draft_weights(model: PreTrainedModel, kind: Quantization) -> int:
    """Puts beside each linear of a model its weight in `kind`, in place; what cannot be stored so is as it is.

    Returns:
        How many numbers are stored so.

    Raises:
        QuantizationError: none can, or there is no kernel for it.
    """
    check_kernel(model, kind, "draft_quantize")
    added = 0
    for parent in list(cast("Any", model).modules()):
        for name, child in list(parent.named_children()):
            holder, place = (child.joint, "linear") if isinstance(child, ProjectionPart) else (parent, name)
            if (twofold := _twofold(getattr(holder, place), kind)) is not None:
                setattr(holder, place, twofold)
                outputs, inputs = twofold.rough.stored.shape
                added += outputs * inputs
    if not added:
        raise QuantizationError(f"draft_quantize: none of its weights can be stored in {kind}")
    return added


def _twofold(linear: nn.Module, kind: Quantization) -> TwofoldLinear | None:
    """None where there is no weight that can be stored; a tied weight is stored once for each linear that reads it."""
    if isinstance(linear, PackedLinear):
        weight, bias = linear.weight_as_given(), linear.bias
    elif is_plain(linear):
        weight, bias = linear.weight, bias_of(linear)
    else:
        return None
    stored = store(weight, kind)
    return None if stored is None else TwofoldLinear(linear, QuantizedLinear(stored, bias))
