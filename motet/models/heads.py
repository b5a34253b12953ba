"""Small heads on what a model knows of a position: trained beside it, served beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from motet.models.files import HEAD

EXPANSION = 4  # of a router's blocks: their inner width over their width
LEAST_DEVIATION = 1e-5  # of cosines: less is rounding
LEAST_SHARE = torch.finfo(torch.float32).tiny  # a threshold of 0 lies below every share


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model knows of N positions.

    Attributes:
        hidden: (N, H) last hidden states, the input of its output head.
        logits: (N, V) raw logits over all tokens that it has.
        embed: the input embeddings (N, H) of N ids.
    """

    hidden: Tensor
    logits: Tensor
    embed: Callable[[Tensor], Tensor]


class ReadingHead(nn.Module):
    """Reads one number, or one for each of C clusters, from each of N positions, in its own dtype.

    Attributes:
        threshold: where it routes: above which reading another model writes the token, unless a request says so.
        clusters: the names of the C clusters; none: it reads one number.
    """

    threshold: float | None = None
    clusters: tuple[str, ...] = ()

    def reading(self, seen: Seen) -> Tensor:
        """(N,) what a composition takes; (N, C) of clusters."""
        raise NotImplementedError


class LinearHead(ReadingHead):
    """A linear head on (N, H) last hidden states alone."""

    def __init__(self, hidden_size: int, bias: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def score(self, hidden: Tensor) -> Tensor:
        """(N,) before anything bounds it."""
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)


class GateHead(LinearHead):
    """(N, H) hidden states → (N,) the gate before its sigmoid. It begins at 0: both voices are as likely. Its reading
    is the sigmoid, the assistant's share d."""

    threshold = 0.5

    def forward(self, hidden: Tensor) -> Tensor:
        return self.score(hidden)

    def reading(self, seen: Seen) -> Tensor:
        return _share(self.score(seen.hidden))


class ScaleHead(LinearHead):
    """(N, H) hidden states → (N,) `least + (most − least)·σ(linear)`, its reading. It begins at 1.

    Args:
        least, most: they enclose 1.
    """

    def __init__(self, hidden_size: int, least: float, most: float) -> None:
        super().__init__(hidden_size, math.log((1 - least) / (most - 1)))
        self.least, self.most = least, most

    def forward(self, hidden: Tensor) -> Tensor:
        return self.least + (self.most - self.least) * self.score(hidden).sigmoid()

    def reading(self, seen: Seen) -> Tensor:
        return self.forward(seen.hidden)


class SimilarityHead(ReadingHead):
    """(N, H) hidden states → (N, C) `(cos(h, μ_c) − m_c) / σ_c`; its reading is the softmax over the clusters.

    Li et al., "Ensembles of Low-Rank Expert Adapters", 2025 (arXiv:2502.00089): μ_c is the mean of the states behind
    the prompts of cluster c, m_c and σ_c are mean and standard deviation of the cosines of these states with it.

    Args:
        hidden_size: H.
        clusters: their names, in their order.
    """

    def __init__(self, hidden_size: int, clusters: Sequence[str]) -> None:
        super().__init__()
        self.clusters = tuple(clusters)
        count = len(self.clusters)
        self.centroids = nn.Parameter(torch.zeros(count, hidden_size))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.mean: Tensor
        self.deviation: Tensor

    def cosines(self, hidden: Tensor) -> Tensor:
        """(N, C), in float64: hidden states lie so close together that float32 would round what tells them apart."""
        return F.normalize(hidden.double(), dim=-1) @ F.normalize(self.centroids.double(), dim=-1).mT

    def forward(self, hidden: Tensor) -> Tensor:
        return (self.cosines(hidden) - self.mean) / self.deviation.clamp(min=LEAST_DEVIATION)

    def reading(self, seen: Seen) -> Tensor:
        return self.forward(seen.hidden).softmax(-1)

    @torch.no_grad()
    def fit(self, hidden: Tensor, owners: Tensor) -> None:
        """Takes centroids, means and deviations from the states (N, H) behind prompts, each of a cluster's number."""
        for number in range(len(self.clusters)):
            own = hidden[owners == number].double()
            self.centroids[number] = own.mean(0)
            cosines = F.normalize(own, dim=-1) @ F.normalize(own.mean(0), dim=-1)
            self.mean[number] = cosines.mean()
            self.deviation[number] = cosines.std(correction=0).clamp(min=LEAST_DEVIATION)


class RouterHead(ReadingHead):
    """N positions → (N,) the router before its sigmoid: whether the token that the model would choose must be another.

    Fu et al., "R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing", 2025
    (arXiv:2505.21600): a feed-forward network on the last hidden state h, the `top` largest logits and the embedding e
    of the most likely token. With LN a layer norm that has weights, and p the probabilities of the `top` most likely
    tokens, the most likely first:

        x ← W [LN(h); LN(e); p] + b
        x ← x + D·gelu(U·LN(x) + u) + c    `blocks` times, U four times as wide as x
        score = o·LN(x) + q

    Probabilities stand in the place of the paper's logits, which a constant added to them would change. It begins at
    0, whatever the seed. Its reading is the sigmoid.

    Args:
        hidden_size: H, of hidden states and embeddings.
        top: tokens whose probabilities are read; missing ones of a smaller vocabulary are 0.
        width: of x.
    """

    def __init__(self, hidden_size: int, top: int, width: int, blocks: int, threshold: float = 0.5) -> None:
        super().__init__()
        self.top, self.threshold = top, threshold
        self.hidden_norm, self.token_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.enter = nn.Linear(2 * hidden_size + top, width)
        self.blocks = nn.ModuleList(RouterBlock(width) for _ in range(blocks))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.leave.weight)

    def forward(self, seen: Seen) -> Tensor:
        dtype = self.leave.weight.dtype
        logits = seen.logits.to(torch.promote_types(seen.logits.dtype, torch.float32))
        top = logits.topk(min(self.top, logits.shape[-1]), dim=-1)
        probs = (top.values - logits.logsumexp(-1, keepdim=True)).exp()
        likeliest = F.pad(probs, (0, self.top - probs.shape[-1]))
        hidden = self.hidden_norm(seen.hidden.to(dtype))
        token = self.token_norm(seen.embed(top.indices[:, 0]).to(dtype))
        x = self.enter(torch.cat([hidden, token, likeliest.to(dtype)], -1))
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(x)).squeeze(-1)

    def reading(self, seen: Seen) -> Tensor:
        return _share(self.forward(seen))


class RouterBlock(nn.Module):
    """(N, W) → (N, W) `x + D·gelu(U·LN(x) + u) + c`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def _share(score: Tensor) -> Tensor:
    """The sigmoid, which is never 0: what is above a threshold of 0 is every position."""
    return score.sigmoid().clamp(min=LEAST_SHARE)


def read_head(folder: Path, head: ReadingHead) -> ReadingHead:
    """The head with the weights of a model's folder, for inference.

    Raises:
        ValueError: no such file, or tensors of another name or shape.
    """
    file = folder / HEAD
    try:
        tensors = safetensors.load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the head cannot be read from {file}: {error}") from error
    shapes = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != found:
        raise ValueError(f"{file} holds {found}, but the head of this model has {shapes}")
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{file}: {', '.join(broken)} holds values that are not finite")
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
