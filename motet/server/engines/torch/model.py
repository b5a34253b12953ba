"""One member: an unmodified Hugging Face causal language model whose attention reads and writes our slots."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.server.engines.base import ModelInfo
from motet.server.engines.facts import end_token_ids, ends_within, max_positions
from motet.server.engines.torch.attention import ATTENTION_NAME, Segment, ShapeProbe, StepContext
from motet.server.engines.torch.cache import LayerShape, SlotCache
from motet.server.engines.torch.norms import fuse_norms
from motet.server.engines.torch.packing import pack_linears

log = logging.getLogger(__name__)

SELF_CHECK_TOKENS = 40
SELF_CHECK_WINDOW = 9
# mean difference of a position's logits, as a share of their spread: rounding stays below it, a wrong mask does not
SELF_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


class ModelLoadError(Exception):
    """A member can't be served; the message names the model, what is wrong and what would help."""


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What one stream computes in a step: `tokens` from position `start` in `slot`; logits of the last `num_logits`."""

    slot: int
    start: int
    tokens: Sequence[int]
    num_logits: int


class Member:
    """A loaded model with its slot cache.

    `forward` is the only way in: all streams of a step in one call.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        max_model_len: int,
        vocab_size: int,
        shapes: Sequence[LayerShape],
        ends: Collection[int] = (),
    ) -> None:
        self.name = name
        self.model = model
        self.dtype = model.dtype
        self.device = model.device
        self.vocab_size = vocab_size
        self.cache = SlotCache(shapes, self.dtype, self.device)
        self.forward_seconds = 0.0
        self.num_forwards = 0
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.info = ModelInfo(
            name=name,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            kv_bytes_per_token=self.cache.bytes_per_token,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            eos_token_ids=ends_within(vocab_size, model_ends(model), ends),
        )

    def forward(self, work: Sequence[ModelWork]) -> Tensor:
        """Runs all streams' tokens as one flat batch; single tokens must come first, in ascending slot order.

        Returns:
            (n, vocab_size) raw logits, in the model's dtype: the last `num_logits` tokens of each item, in order.
        """
        began = time.perf_counter()
        logits = self._forward(work)
        self.forward_seconds += time.perf_counter() - began
        self.num_forwards += 1
        return logits

    def _forward(self, work: Sequence[ModelWork]) -> Tensor:
        segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for item in work:
            segments.append(Segment(item.slot, item.start, len(item.tokens), len(ids)))
            ids += item.tokens
            positions += range(item.start, item.start + len(item.tokens))
            wanted += range(len(ids) - item.num_logits, len(ids))
        singles = next((i for i, segment in enumerate(segments) if segment.length > 1), len(segments))
        step = StepContext(self.cache, segments[:singles], segments[singles:])
        keep = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        # every position wanted (a decoding step): a slice of all is the cheaper index
        extra: dict[str, Any] = {}
        if self._keeps_logits:
            extra["logits_to_keep"] = 0 if len(wanted) == len(ids) else (keep if wanted else 1)
        output = self.model(
            input_ids=torch.tensor([ids], dtype=torch.int64, device=self.device),
            position_ids=torch.tensor([positions], dtype=torch.int64, device=self.device),
            use_cache=False,
            step=step,
            **extra,
        )
        logits: Tensor = output.logits[0]
        if not wanted:
            logits = logits[:0]
        elif not self._keeps_logits and len(wanted) < len(ids):
            logits = logits[keep]
        return logits[:, : self.vocab_size]


def model_ends(model: PreTrainedModel) -> tuple[int, ...]:
    """The ends that a model's own configurations name (see `end_token_ids`)."""
    return end_token_ids(getattr(model, "generation_config", None), model.config, model.config.get_text_config())


def load_member(
    name: str,
    path: str,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    vocab_size: int | None = None,
    max_model_len: int | None = None,
    revision: str | None = None,
    ends: Collection[int] = (),
    adapt: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
) -> Member:
    """Loads a checkpoint folder or hub id and proves that it computes here what it computes in transformers.

    Args:
        dtype: None keeps the checkpoint's own.
        vocab_size: the shared width (the tokenizer's); rows of the head beyond it are never produced.
        ends: of an answer, beside those of the checkpoint's own configurations: the tokenizer's.
        adapt: what becomes of the checkpoint before anything else is done with it: merging an adapter, say.
        max_model_len: upper bound on the context, None for the model's own.

    Raises:
        ModelLoadError: unreadable or incomplete checkpoint, unsupported architecture, or a failed self-check.
    """
    model = _load(name, path, dtype, revision)
    if adapt is not None:
        model = adapt(model)
    longest = max_positions(model.config)
    limit = min(max_model_len or longest, longest)
    width = vocab_size or int(model.config.get_text_config().vocab_size)
    try:
        member = _prepare(name, model, limit, width, device, ends)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(f"model {name!r} does not run: {type(error).__name__}: {error}") from error
    log.info("loaded %s: %s parameters, %s", name, f"{member.info.num_parameters:,}", member.info.dtype)
    return member


@torch.inference_mode()
def _prepare(name: str, model: PreTrainedModel, limit: int, width: int, device: str, ends: Collection[int]) -> Member:
    """The model behind our attention, packed, and checked against its own plain forward."""
    with _narrow_windows(model):
        ids = _self_check_ids(model, limit)
        expected = model(input_ids=ids, use_cache=False).logits[0].float().to("cpu")
        model.set_attn_implementation(ATTENTION_NAME)
        shapes = _probe(name, model)
        model.to(device)  # type: ignore[arg-type]
        member = Member(name, model, limit, width, shapes, ends)
        if member.device.type == "cpu":
            fuse_norms(model)
            pack_linears(model)
        _self_check(member, cast("list[int]", ids[0].tolist()), expected[:, :width])
    return member


@contextmanager
def _narrow_windows(model: PreTrainedModel) -> Generator[None]:
    """For the self-check, windows and chunks of attention that are narrower than its few tokens: a family whose
    window reaches us in another way than expected is then seen to differ, and refused."""
    holders: list[object] = [model.config, model.config.get_text_config(), *model.modules()]
    saved: list[tuple[object, str, int]] = []
    for holder in holders:
        for field in ("sliding_window", "attention_chunk_size"):
            value = getattr(holder, field, None)
            if isinstance(value, int) and value > SELF_CHECK_WINDOW:
                saved.append((holder, field, value))
                setattr(holder, field, SELF_CHECK_WINDOW)
    try:
        yield
    finally:
        for holder, field, value in reversed(saved):
            setattr(holder, field, value)


def _load(name: str, path: str, dtype: torch.dtype | None, revision: str | None) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            revision=revision,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelLoadError(f"model {name!r} could not be read from {path!r}: {error}") from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    lost = sorted(report.get("missing_keys", ())) + [str(key) for key in report.get("mismatched_keys", ())]
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise ModelLoadError(f"model {name!r}: the checkpoint {path!r} lacks or misshapes {shown}")
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelLoadError(f"model {name!r}: the architecture {type(model).__name__} takes no attention function")
    return model.eval().requires_grad_(False)


def _self_check_ids(model: PreTrainedModel, longest: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vocab = int(model.config.get_text_config().vocab_size)
    return torch.randint(0, vocab, (1, min(SELF_CHECK_TOKENS, longest)), generator=generator)


def _probe(name: str, model: PreTrainedModel) -> list[LayerShape]:
    probe = ShapeProbe({})
    ids = torch.zeros(1, 2, dtype=torch.int64)
    try:
        model(input_ids=ids, position_ids=torch.arange(2)[None], use_cache=False, step=probe)
    except Exception as error:
        raise ModelLoadError(f"model {name!r} does not pass its step to its attention: {error}") from error
    if not probe.shapes or sorted(probe.shapes) != list(range(len(probe.shapes))):
        raise ModelLoadError(f"model {name!r}: attention of layers {sorted(probe.shapes)} was seen, not of every layer")
    return [probe.shapes[layer] for layer in range(len(probe.shapes))]


def _self_check(member: Member, ids: list[int], expected: Tensor) -> None:
    """A prompt in unequal pieces through the slots must give the logits of one plain forward."""
    cuts = [0, *sorted({len(ids) // 2, len(ids) // 2 + 1, len(ids) // 2 + 2, len(ids) - 1}), len(ids)]
    member.cache.resize(2, len(ids))
    pieces = [
        member.forward([ModelWork(1, start, ids[start:end], end - start)])
        for start, end in pairwise(cuts)
        if end > start
    ]
    member.cache.clear()
    worst = float((torch.cat(pieces).float().cpu() - expected).abs().mean(-1).max())
    spread = float(expected.std()) + 1e-6
    allowed = SELF_CHECK_TOLERANCE.get(member.dtype, 1e-3) * spread
    if not worst <= allowed:
        raise ModelLoadError(
            f"model {member.name!r}: its logits through the slot cache differ from a plain forward by {worst:.3g} "
            f"(allowed {allowed:.3g}); the architecture {type(member.model).__name__} is not supported"
        )
    member.forward_seconds, member.num_forwards = 0.0, 0
