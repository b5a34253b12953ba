"""What transformers' own forward computes on a short text, layer by layer: what the load check compares with.

Rounding differs between two right computations, and deep models amplify it. So every part is compared alone, on inputs
recorded here, with what the same arithmetic gives in a wider dtype; the whole model is only compared against how far
two forwards of transformers itself lie apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from motet.engines.torch.cache import LayerShape

RECORDER_NAME = "motet-recorder"
NARROW_WINDOW = 9
NARROW_SOFTCAP = 1.0
INPUT_ROWS = 8

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's attention on the whole text of N tokens.

    Attributes:
        module: whose `forward` called it.
        hidden: (1, N, hidden) what the module was given.
        query, key, value: (1, heads, N, dim) what it handed to its attention function.
        output: (1, N, H, D_v) what its own eager function makes of them in a wider dtype.
        tolerance: the same shape; how far rounding may lead from `output`, for each element.
    """

    module: nn.Module
    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    tolerance: Tensor

    @property
    def shape(self) -> LayerShape:
        return self.key.shape[1], self.key.shape[3], self.value.shape[3]


@dataclass(slots=True)
class Recording:
    """Two forwards of transformers over the same N ids.

    Attributes:
        calls: every layer's attention.
        inputs: the first rows (≤ INPUT_ROWS, width) that reached the watched modules, by module name.
        rows: how many rows reached the watched modules each time they were called.
        logits: (N, V) of the eager forward, float32.
        exact_logits: (N, V) with attention alone in a wider dtype: its distance is what rounding does to this model.
        flows: whether the eager forward has proven what it was watched for.
    """

    ids: list[int]
    calls: dict[int, AttentionCall] = field(default_factory=dict[int, AttentionCall])
    inputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    rows: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    exact_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    flows: bool = False


def record(
    model: PreTrainedModel,
    ids: Sequence[int],
    watched: Mapping[str, nn.Module],
    proof: Callable[[Callable[[], None]], bool] | None = None,
) -> Recording:
    """Runs the model as transformers does; `watched` are the modules whose inputs are kept, `proof` runs the eager
    forward that it is given and says whether it has proven something.

    The model is left with the recorder's attention: the caller sets another.

    Raises:
        LookupError: an attention module has no eager function.
    """
    recording = Recording(list(ids))
    batch = torch.tensor([recording.ids], dtype=torch.int64, device=model.device)
    recording.exact_logits = _logits(model, batch, _exact_attention)
    hidden: dict[nn.Module, Tensor] = {}

    def attend(module: nn.Module, *tensors: Tensor, **given: Any) -> tuple[Tensor, None]:
        output = own_attention(module)(module, *tensors, **given)[0]
        layer: int = module.layer_idx  # type: ignore[assignment]
        recording.calls[layer] = _call(module, hidden.pop(module), tensors, given, output)
        return output, None

    def keep_hidden(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        hidden[module] = first_tensor(args, given)

    def keep_rows(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            x = first_tensor(args, given)
            recording.rows.setdefault(name, []).append(x.shape[:-1].numel())
            recording.inputs.setdefault(name, x.reshape(-1, x.shape[-1])[:INPUT_ROWS].clone())

        return keep

    hooks = {module: keep_hidden for module in model.modules() if hasattr(module, "layer_idx")}
    hooks |= {module: keep_rows(name) for name, module in watched.items()}

    def run() -> None:
        with before_forward(hooks):
            recording.logits = _logits(model, batch, attend)

    if proof is None:
        run()
    else:
        recording.flows = proof(run)
    return recording


@contextmanager
def before_forward(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None]:
    """Forward pre-hooks (with keywords), one per module, for a while."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(args: tuple[Any, ...], given: Mapping[str, Any]) -> Tensor:
    """A module's main input: the first tensor, by position or else by keyword."""
    return next(value for value in (*args, *given.values()) if isinstance(value, Tensor))


def own_attention(module: nn.Module) -> AttentionFunction:
    """The eager function that an attention module's own `forward` names."""
    names = inspect.unwrap(type(module).forward).__globals__
    if "eager_attention_forward" not in names:
        raise LookupError(f"{type(module).__name__} has no eager attention to compare with")
    return names["eager_attention_forward"]


def _logits(model: PreTrainedModel, batch: Tensor, attend: AttentionFunction) -> Tensor:
    AttentionInterface.register(RECORDER_NAME, attend)
    masks: Any = AttentionMaskInterface()
    masks.register(RECORDER_NAME, masks["eager"])
    model.set_attn_implementation(RECORDER_NAME)
    try:
        logits: Tensor = model(input_ids=batch, use_cache=False).logits
    finally:
        AttentionInterface.register(RECORDER_NAME, _exact_attention)  # the list would keep what `attend` has recorded
    return logits[0].float()


def wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


def _widened(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a mask, which may be None."""
    return [cast(Tensor, None if tensor is None else tensor.to(dtype)) for tensor in tensors]


def _exact_attention(module: nn.Module, *tensors: Tensor, **given: Any) -> tuple[Tensor, None]:
    dtype = tensors[0].dtype
    output = own_attention(module)(module, *_widened(tensors, wider(dtype)), **given)[0]
    return output.to(dtype), None


def _call(
    module: nn.Module,
    hidden: Tensor,
    tensors: Sequence[Tensor],
    given: Mapping[str, Any],
    output: Tensor,
) -> AttentionCall:
    """The exact answer, and what rounding may do to each of its elements.

    A weighted mean rounds in proportion to Σ p|v|. Its weights move with the scores' own rounding: in float32 sums in
    both (‖q‖‖k‖), and what the eager function itself loses where it rounds scores to the dtype.
    """
    query, key, value = tensors[:3]
    attend = own_attention(module)
    q, k, v, *rest = _widened(tensors, wider(query.dtype))
    exact = attend(module, q, k, v, *rest, **given)[0]
    magnitude = attend(module, q, k, v.abs(), *rest, **given)[0]
    lost = (output - exact).pow(2).mean(-1, keepdim=True).sqrt()
    scale = abs(given.get("scaling") or q.shape[-1] ** -0.5)
    lengths: list[Tensor] = [rows.pow(2).sum(-1).sqrt() for rows in (q, k)]
    reach = scale * float(lengths[1].max()) * lengths[0].transpose(1, 2)[..., None]  # (1, N, H, 1)
    relative = 2 * torch.finfo(query.dtype).eps + 8 * torch.finfo(torch.float32).eps * reach
    return AttentionCall(module, hidden, query, key, value, exact, relative * magnitude + 4 * lost)


@contextmanager
def narrowed(model: PreTrainedModel) -> Generator[None]:
    """Windows and chunks of attention narrower than the check's text, and soft caps that its scores reach: a family
    whose window or cap comes to us in another way than expected is then seen to differ."""
    narrow: dict[str, float] = {
        "sliding_window": NARROW_WINDOW,
        "attention_chunk_size": NARROW_WINDOW,
        "attn_logit_softcapping": NARROW_SOFTCAP,
    }
    holders: list[object] = [model.config, model.config.get_text_config(), *model.modules()]
    saved: list[tuple[object, str, float]] = []
    for holder in holders:
        for field_name, most in narrow.items():
            value = getattr(holder, field_name, None)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
                saved.append((holder, field_name, value))
                setattr(holder, field_name, type(value)(most))
    try:
        yield
    finally:
        for holder, field_name, value in reversed(saved):
            setattr(holder, field_name, value)
