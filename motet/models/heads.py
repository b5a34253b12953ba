"""Small heads on a model's last hidden state, the input of its output head: trained beside it, served beside it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from motet.models.files import HEAD


class ReadingHead(nn.Module):
    """A linear head that reads one number from each of (N, H) hidden states, in its own dtype."""

    def __init__(self, hidden_size: int, bias: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def score(self, hidden: Tensor) -> Tensor:
        """(N,) before anything bounds it."""
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)

    def reading(self, hidden: Tensor) -> Tensor:
        """(N,) what a composition takes."""
        raise NotImplementedError


class GateHead(ReadingHead):
    """(N, H) hidden states → (N,) the gate before its sigmoid. It begins at 0: both voices are as likely. Its reading
    is the sigmoid, the assistant's share d."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.score(hidden)

    def reading(self, hidden: Tensor) -> Tensor:
        return self.score(hidden).sigmoid()


class ScaleHead(ReadingHead):
    """(N, H) hidden states → (N,) `least + (most − least)·σ(linear)`, its reading. It begins at 1.

    Args:
        least, most: they enclose 1.
    """

    def __init__(self, hidden_size: int, least: float, most: float) -> None:
        super().__init__(hidden_size, math.log((1 - least) / (most - 1)))
        self.least, self.most = least, most

    def forward(self, hidden: Tensor) -> Tensor:
        return self.least + (self.most - self.least) * self.score(hidden).sigmoid()

    def reading(self, hidden: Tensor) -> Tensor:
        return self.forward(hidden)


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
