"""A checkpoint → a member, proven to compute here what it computes in transformers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from itertools import cycle, islice

import torch
from transformers import PreTrainedModel

from motet.engines.torch.adapters import linears, width_of
from motet.engines.torch.check import CheckFailed, check
from motet.engines.torch.exits import EarlyExits
from motet.engines.torch.model import Member
from motet.engines.torch.packing import does_more
from motet.engines.torch.quantization import QuantizationError, quantize
from motet.engines.torch.recording import Recording, narrowed, record
from motet.engines.torch.replacements import replace_modules, replaceable
from motet.engines.torch.soft_prompts import reads_embeddings
from motet.models.checkpoint import load_weights
from motet.models.facts import longrope_limit, max_positions
from motet.models.heads import ReadingHead
from motet.models.info import HeadKind, Quantization

log = logging.getLogger(__name__)

CHECK_TOKENS = 48


class ModelLoadError(Exception):
    """A member can't be served; the message names the model, what is wrong and what would help."""


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
    quantization: Quantization | None = None,
    draft: Quantization | None = None,
    sample: Sequence[int] | None = None,
    head: tuple[HeadKind, Callable[[int], ReadingHead]] | None = None,
) -> Member:
    """Loads a checkpoint folder or hub id and proves that it computes here what it computes in transformers.

    Args:
        dtype: None keeps the checkpoint's own.
        vocab_size: the shared width (the tokenizer's); rows of the head beyond it are never produced.
        ends: of an answer, beside those of the checkpoint's own configurations: the tokenizer's.
        adapt: what becomes of the checkpoint before anything else is done with it: merging an adapter, say.
        max_model_len: upper bound on the context, None for the model's own.
        quantization: how weights are stored; everything is checked against the model with those weights.
        draft: how weights are stored beside them, for guesses alone.
        head: that is served with the model, made for the width of its hidden states.
        sample: the ids of some ordinary text, for the load check; its rounding is that of real use then.

    Raises:
        ModelLoadError: unreadable, incomplete or broken checkpoint, unsupported architecture, or a failed load check.
    """
    model = _load(name, path, dtype, revision)
    if adapt is not None:
        model = adapt(model)
    _check_weights(name, model)
    longest = max_positions(model.config)
    if longest == longrope_limit(model.config):
        log.warning(
            "%s: its context ends at %d tokens, where longrope changes the factors of whole batches", name, longest
        )
    limit = min(max_model_len or longest, longest)
    width = vocab_size or int(model.config.get_text_config().vocab_size)
    try:
        model.to(device)  # type: ignore[arg-type]
        if quantization is not None:
            quantize(model, quantization)
        member = _prepare(name, model, limit, width, ends, _check_ids(model, limit, sample))
        if draft is not None:
            member.draft_with(draft)
        if head is not None:
            kind, make = head
            member.attach(kind, make(int(model.config.get_text_config().hidden_size)))
    except ModelLoadError:
        raise
    except QuantizationError as error:
        raise ModelLoadError(f"model {name!r}: {error}") from error
    except Exception as error:
        raise ModelLoadError(f"model {name!r} does not run: {type(error).__name__}: {error}") from error
    stored = f", {quantization} weights" if quantization else ""
    log.info("loaded %s: %s parameters, %s%s", name, f"{member.info.num_parameters:,}", member.info.dtype, stored)
    return member


@torch.inference_mode()
def _prepare(
    name: str, model: PreTrainedModel, limit: int, width: int, ends: Collection[int], ids: Sequence[int]
) -> Member:
    """The model behind our attention, packed, and checked against its own plain forward."""
    with narrowed(model):
        exits = EarlyExits.of(model)
        recording = _record(name, model, ids, exits)
        widths = {name: width_of(linear) for name, linear in linears(model).items()}
        shapes = [recording.calls[layer].shape for layer in sorted(recording.calls)]
        member = Member(name, model, limit, width, shapes, ends)
        if member.device.type == "cpu":
            replace_modules(model, recording.inputs)
        try:
            check(member, recording)
        except CheckFailed as error:
            raise ModelLoadError(
                f"model {name!r} computes something else here than in transformers: {error}{_quantisation(model)}"
            ) from error
        member.reads_embeddings = reads_embeddings(member, recording.ids)
        member.linears = {name: width for name, width in widths.items() if recording.rows.get(name) == [len(ids)]}
        if recording.flows:
            member.exits = exits
        else:
            log.info(
                "%s: no early exits: %s has other parts than layers, a norm and a head", name, type(model).__name__
            )
    return member


def _quantisation(model: PreTrainedModel) -> str:
    """What a failed check should also say of a model whose linears quantise what goes in."""
    odd = next((module for module in model.modules() if does_more(module)), None)
    kind = type(odd).__name__
    return "" if odd is None else f"; its layers are quantised ({kind}), perhaps by what else is in the batch"


def _record(name: str, model: PreTrainedModel, ids: Sequence[int], exits: EarlyExits | None) -> Recording:
    watched = replaceable(model) | linears(model)
    try:
        recording = record(model, ids, watched, None if exits is None else exits.flows)
    except LookupError as error:
        raise ModelLoadError(f"model {name!r}: {error}") from error
    layers = sorted(recording.calls)
    if not layers or layers != list(range(len(layers))):
        raise ModelLoadError(f"model {name!r}: attention of layers {layers} was seen, not of every layer")
    if not bool(recording.logits.isfinite().all()):
        raise ModelLoadError(
            f"model {name!r}: in {str(model.dtype).removeprefix('torch.')} its own plain forward gives values that are "
            "not finite, though its weights are; another dtype may reach further"
        )
    return recording


def _load(name: str, path: str, dtype: torch.dtype | None, revision: str | None) -> PreTrainedModel:
    try:
        model = load_weights(path, revision, dtype=dtype or "auto", attn_implementation="eager")
    except Exception as error:
        raise ModelLoadError(f"model {name!r} could not be read from {path!r}: {error}") from error
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelLoadError(f"model {name!r}: the architecture {type(model).__name__} takes no attention function")
    return model.eval().requires_grad_(False)


def _check_weights(name: str, model: PreTrainedModel) -> None:
    """Raises ModelLoadError: weights that are not finite."""
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # one sum is far cheaper than a test of every value, and not finite where one of them is not
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum(dtype=torch.float32))):
            broken = int((~tensor.isfinite()).sum())
            if broken:
                raise ModelLoadError(
                    f"model {name!r}: {broken} of the {tensor.numel()} values of {tensor_name} are NaN or infinite; "
                    "the checkpoint is broken"
                )


def _check_ids(model: PreTrainedModel, longest: int, sample: Sequence[int] | None) -> list[int]:
    """The sample, again and again; or small ids: vocabularies begin with what is frequent."""
    vocab = int(model.config.get_text_config().vocab_size)
    length = min(CHECK_TOKENS, longest)
    ids = [token for token in sample or () if token < vocab]
    return list(islice(cycle(ids), length)) if ids else [(7 * i * i + 5) % min(vocab, 256) for i in range(length)]
