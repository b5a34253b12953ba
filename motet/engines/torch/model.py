"""One member: an unmodified Hugging Face causal language model whose attention reads and writes our slots."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.engines.torch.attention import STEP, Segment, StepContext
from motet.engines.torch.cache import LayerShape, SlotCache
from motet.engines.torch.draft_weights import add_draft_weights, guessing
from motet.engines.torch.exits import EarlyExits
from motet.engines.torch.low_rank import Rows, adding
from motet.engines.torch.prices import Prices
from motet.models.ends import ends_within, model_ends
from motet.models.facts import is_tied, num_parameters
from motet.models.heads import ReadingHead, Seen
from motet.models.info import HeadKind, ModelInfo, Quantization

log = logging.getLogger(__name__)

LEAST_SHARE = 0.5  # of a model's weights: with fewer of them in fewer bits a guess costs nearly a step


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What one stream computes in a step: `tokens` from position `start` in `slot`; logits of the last `num_logits`,
    and of the same tokens behind each of the layers `exits`. Negative tokens are rows of soft prompts. `adapter`: the
    number of the one that changes these rows, 0 for none."""

    slot: int
    start: int
    tokens: Sequence[int]
    num_logits: int
    exits: tuple[int, ...] = ()
    adapter: int = 0


def early_rows(work: Sequence[ModelWork]) -> list[tuple[int, int]]:
    """(layer, number of the item) of the logits behind early layers, each for all of the item's `num_logits`: in the
    order in which they stand behind those of the last layer."""
    return sorted((layer, number) for number, item in enumerate(work) for layer in item.exits)


class Member:
    """A loaded model with its slot cache.

    `forward` is the only way in: all streams of a step in one call.

    Attributes:
        readings: (n,) float32, of C clusters (n, C): what the member's head says of each row of the last forward; None
            without a head.
        exits: where its forward may be left early; None where that is not proven (`EarlyExits.flows`).
        draft_prices: what forwards with the draft's weights cost; None where its own are all that it has.
        reads_embeddings: whether a text's embeddings are proven to give what its ids give.
        virtual: the rows (H,) of the soft prompts in front of it, by their negative ids (`soft_prompts`).
        linears: (in, out) of those that adapters may change, by name: which are proven to be given every token of a
            forward once (`adapters`).
    """

    prefix: tuple[int, ...] = ()  # as a `SoftPrompt` has one
    adapter = 0  # as an `Adapter` has one

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
        self.prices = Prices()
        self.draft_prices: Prices | None = None
        self.readings: Tensor | None = None
        self.exits: EarlyExits | None = None
        self.reads_embeddings = False
        self.virtual: dict[int, Tensor] = {}
        self.linears: dict[str, tuple[int, int]] = {}
        self._head: ReadingHead | None = None
        self._hidden: Tensor | None = None
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.info = ModelInfo(
            name=name,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            kv_bytes_per_token=self.cache.bytes_per_token,
            num_parameters=num_parameters(model.config),  # of the checkpoint, however they are stored
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            eos_token_ids=ends_within(vocab_size, ends, model_ends(model)),
            num_layers=len(shapes),
            tied=is_tied(model.config),
        )

    @property
    def member(self) -> Member:
        """Itself, as of a `SoftPrompt` or an `Adapter` the model that computes it."""
        return self

    def attach(self, kind: HeadKind, head: ReadingHead) -> None:
        """From now on the head reads what the model's output head does, and what that says.

        Raises:
            ValueError: the model has no output head.
        """
        output = cast("object", self.model.get_output_embeddings())
        if not isinstance(output, nn.Module):
            raise ValueError(f"{type(self.model).__name__} has no output head, whose input a {kind} would read")
        output.register_forward_pre_hook(self._note)
        self._head = head.to(self.device)
        self.info = replace(self.info, head=kind, threshold=head.threshold, clusters=head.clusters)

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._hidden = inputs[0].detach()

    def draft_with(self, kind: Quantization) -> None:
        """From now on the member guesses with its weights in so few bits. Raises QuantizationError: they cannot be."""
        share = add_draft_weights(self.model, kind) / self.info.num_parameters
        self.draft_prices = Prices()
        if share < LEAST_SHARE:
            log.warning(
                "%s: %.0f %% of its weights alone can be stored in %s: guesses with them will hardly be cheaper",
                self.name,
                100 * share,
                kind,
            )

    def forget_draft_prices(self) -> None:
        """Guesses alone tell what they cost: where none are made any more, a price of a bad moment would stay."""
        if self.draft_prices is not None:
            self.draft_prices = Prices()

    def stop_drafting(self) -> None:
        """From now on the member guesses with its own weights."""
        self.draft_prices = None

    def forward(self, work: Sequence[ModelWork], *, is_guess: bool = False) -> Tensor:
        """Runs all streams' tokens as one flat batch; single tokens must come first, in ascending slot order.

        Args:
            is_guess: with the draft's weights, where the member has them; what that writes into slots is to be cut off
                again.

        Returns:
            (n, vocab_size) raw logits, in the model's dtype: the last `num_logits` tokens of each item, in order; then
            those behind early layers (`early_rows`).
        """
        began = time.perf_counter()
        with guessing() if is_guess else nullcontext():
            logits = self._forward(work)
        spent = time.perf_counter() - began
        self.forward_seconds += spent
        self.num_forwards += 1
        prices = self.guess_prices if is_guess else self.prices
        prices.observe(sum(len(item.tokens) for item in work), spent)
        return logits

    @property
    def guess_prices(self) -> Prices:
        """What forwards cost that guess."""
        return self.draft_prices or self.prices

    def _forward(self, work: Sequence[ModelWork]) -> Tensor:
        segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        early: dict[int, list[int]] = {}
        adapted: dict[int, list[int]] = {}
        for item in work:
            segments.append(Segment(item.slot, item.start, len(item.tokens), len(ids)))
            if item.adapter:
                adapted.setdefault(item.adapter, []).extend(range(len(ids), len(ids) + len(item.tokens)))
            ids += item.tokens
            positions += range(item.start, item.start + len(item.tokens))
            wanted += range(len(ids) - item.num_logits, len(ids))
            for layer in item.exits:
                early.setdefault(layer, []).extend(range(len(ids) - item.num_logits, len(ids)))
        singles = next((i for i, segment in enumerate(segments) if segment.length > 1), len(segments))
        step = StepContext(self.cache, segments[:singles], segments[singles:])
        # a tensor, never a number: with a number some models drop queries early, and we need every token's keys
        keep = torch.tensor(wanted or [0], dtype=torch.int64, device=self.device)
        every = len(wanted) == len(ids)  # a decoding step: all is the cheaper index
        extra = {"logits_to_keep": 0 if every else keep} if self._keeps_logits else {}
        current = STEP.set(step)
        try:
            with self._leaving(early), self._adding(adapted):
                output = self.model(
                    **self._inputs(ids),
                    position_ids=torch.tensor([positions], dtype=torch.int64, device=self.device),
                    use_cache=False,
                    **extra,
                )
        finally:
            STEP.reset(current)
        logits: Tensor = output.logits[0]
        rows = slice(0, 0) if not wanted else slice(None) if self._keeps_logits or every else keep
        if self._head is not None and self._hidden is not None:
            hidden = self._hidden.flatten(0, -2)[rows]
            seen = Seen(hidden, logits[rows][: len(hidden)], self.model.get_input_embeddings())
            self.readings = self._head.reading(seen).float()
            self._hidden = None
        if isinstance(rows, Tensor) and early:
            rows = torch.cat([rows, torch.arange(len(ids), logits.shape[0], device=self.device)])
        return logits[rows][:, : self.vocab_size]

    def _inputs(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The ids (1, N); their embeddings (1, N, H) where rows of soft prompts are among them."""
        virtual = [place for place, token in enumerate(ids) if token < 0] if self.virtual else []
        tokens = torch.tensor([ids], dtype=torch.int64, device=self.device)
        if not virtual:
            return {"input_ids": tokens}
        embedded: Tensor = self.model.get_input_embeddings()(tokens.clamp(min=0))
        embedded[0, virtual] = torch.stack([self.virtual[ids[place]] for place in virtual])
        return {"inputs_embeds": embedded}

    def _adding(self, adapted: Mapping[int, Sequence[int]]) -> AbstractContextManager[None]:
        """A forward in which adapters add to these tokens, by the adapters' numbers."""
        if not adapted:
            return nullcontext()
        return adding({number: Rows.of(rows, self.device) for number, rows in adapted.items()})

    def _leaving(self, early: Mapping[int, Sequence[int]]) -> AbstractContextManager[None]:
        """A forward in which these tokens leave early as well, by the layer that they leave behind."""
        if not early:
            return nullcontext()
        if self.exits is None:
            raise ValueError(f"model {self.name!r} has no early exits")
        return self.exits.taken(dict(sorted(early.items())))
