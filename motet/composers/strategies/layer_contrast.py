"""Layer contrast: prefer what a model's last layer likes more than one of its early layers does."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.errors import CompositionError
from motet.composers.exits import Bucket, Depth, Exit, Select
from motet.composers.roles import Share, Weight
from motet.composers.shift import Shift, Term, VoiceSet
from motet.composers.strategies.strategy import Request, Strategy

MAX_CANDIDATES = 32
MAX_LAYER = 1000  # deeper than any model; a request's base has bounds of its own

Layer = Annotated[int, Field(ge=0, le=MAX_LAYER)]


class LayerContrast(Strategy, frozen=True):
    """`z = L_base − α L_early` inside `{v: L_base[v] ≥ max L_base + ln m}`, else −inf

    DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models (Chuang et al. 2024,
    arXiv:2309.03883), α = 1 and m = 0.1. L_early is what the base's own final norm and output head make of its hidden
    state behind an early layer, in the same forward. Every token has its layer: of the candidates the one whose
    distribution has the greatest Jensen–Shannon divergence from the base's, or with `select: "entropy"` the greatest
    entropy. Form `extrapolation` is `(1 + α) L_base − α L_early`. The trace reports the layer as `layer`.
    """

    strength = "alpha"
    strategy: Literal["layer_contrast"] = "layer_contrast"
    bucket: Bucket | None = None
    """Every second layer of the lower half is a candidate (`low`, also if left out), or of the upper half (`high`)."""
    layers: Annotated[list[Layer], Field(min_length=1, max_length=MAX_CANDIDATES)] | None = None
    """The candidates themselves; 0 is the embeddings, 1 what is behind the first layer. Excludes `bucket`."""
    select: Select = "divergence"
    """What chooses among the candidates, for every token."""
    alpha: Weight = 1.0
    """Strength of the contrast: 0 changes nothing but what `mask` leaves out."""
    mask: Share | None = 0.1
    """Tokens less likely than this share m of the base's most likely one are impossible; null: no mask."""
    form: Literal["difference", "extrapolation"] = "difference"
    """`difference` is L_base − α L_early, `extrapolation` is (1 + α) L_base − α L_early."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.bucket is not None and self.layers is not None:
            raise ValueError("bucket and layers exclude each other")
        return self

    def shift(self, request: Request) -> Shift:
        early = replace(request.base, exit=Exit(self._candidates(request), self.select))
        terms = (Term("early", early, -self.alpha),)
        if self.form == "extrapolation":
            terms = (Term("base", request.base, self.alpha), *terms)
        return Shift(terms, () if self.mask is None else (VoiceSet(request.base, "ratio", self.mask),))

    def _candidates(self, request: Request) -> tuple[int, ...]:
        """Ascending; as they are written, or none, where nobody knows how deep the base is."""
        depth = request.depth
        if self.layers is None:
            return () if depth is None else depth.bucket(self.bucket or "low")
        for number, layer in enumerate(self.layers):
            if depth is not None and layer > depth.num_layers:
                raise self._unknown(request, number, depth)
        return tuple(sorted(set(self.layers)))

    def _unknown(self, request: Request, number: int, depth: Depth) -> CompositionError:
        assert self.layers is not None
        path = f"{request.path}.layers.{number}"
        return CompositionError(
            f"{path}: {request.base.model!r} has no layer {self.layers[number]}; allowed: 0 (its embeddings) to "
            f"{depth.num_layers} (all of its layers); the nearest is {depth.num_layers}",
            path,
        )
