"""Optimisers of a recipe: AdamW, and Muon for the matrices of a model that is trained from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from motet.training import recipe

MOMENTUM = 0.95
OUTER = ("embed", "wte", "wpe", "head.")  # parts of the names of matrices that belong to no hidden layer
# Optimal polynomials a·x + b·x³ + c·x⁵ of Amsel et al., "The Polar Express", 2025: the first three of the sequence
# for singular values in [0.001, 1] raise small ones as far as four of Muon's own five steps. Of a training step of
# the demo's larger model, Muon's own took 42 %.
SAFETY = 1.01  # the polynomials diverge above 1, where bfloat16 rounding may put a value
POLAR_EXPRESS = tuple(
    (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    )
)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C), R ≤ C, with singular values pushed towards 1, in bfloat16.

    Muon's Newton–Schulz iteration (Jordan et al., "Muon: an optimizer for hidden layers", 2024): values above
    0.01 of the Frobenius norm end up between 0.1 and 2, smaller ones grow up to 130-fold.
    """
    norms: Tensor = matrices.square().sum((1, 2), keepdim=True).sqrt()
    x = (matrices / (SAFETY * norms + 1e-7)).bfloat16()
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


class MuonOptimizer(torch.optim.Optimizer):
    """Momentum, orthogonalised: for matrices (R, C) of hidden layers, not for embeddings or norms.

    Updates are scaled by 0.2·√max(R, C), which gives them AdamW's usual size (Liu et al., "Muon is scalable for
    LLM training", 2025). Matrices of one shape, up to transposition, are orthogonalised in one batch.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter with a gradient; a closure is evaluated first, as in torch."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(sorted(parameter.shape))].append((parameter, self._momentum(parameter)))
            for alike in by_shape.values():
                _update_alike(alike, group["lr"])
        return loss

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum of the gradient, laid flat: (R, C) with R ≤ C."""
        assert parameter.grad is not None
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(parameter)).lerp_(parameter.grad, 1 - MOMENTUM)
        return _flat(parameter.grad.lerp(average, MOMENTUM))


def _flat(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _update_alike(alike: list[tuple[nn.Parameter, Tensor]], lr: float) -> None:
    directions = orthogonalize(torch.stack([momentum for _, momentum in alike]))
    for (parameter, _), direction in zip(alike, directions, strict=True):
        _flat(parameter).add_(direction.to(parameter.dtype), alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)


def adamw(params: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """AdamW without weight decay, β = (0.9, 0.98)."""
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def muon_and_adamw(
    parameters: Mapping[str, nn.Parameter], muon_lr: float, adamw_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon on the hidden layers' matrices, AdamW on embeddings, head and norms.

    Parameters are given by name; an optimiser that would have nothing to do is left out.
    """
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        outer = any(part in name for part in OUTER)
        (hidden if parameter.ndim == 2 and not outer else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(MuonOptimizer(hidden, muon_lr))
    if others:
        optimizers.append(adamw(others, adamw_lr))
    return optimizers


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], setting: recipe.AdamW | recipe.Muon
) -> list[torch.optim.Optimizer]:
    """AdamW over everything (weight decay on matrices alone), or Muon on hidden matrices and AdamW on the rest."""
    if isinstance(setting, recipe.Muon):
        return muon_and_adamw(parameters, setting.lr, setting.adamw_lr)
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": chosen, "weight_decay": decay}
        for chosen, decay in ((matrices, setting.weight_decay), (vectors, 0.0))
        if chosen
    ]
    return [torch.optim.AdamW(groups, lr=setting.lr, betas=setting.betas, fused=True)]
