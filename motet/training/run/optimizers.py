"""The recipe's optimisers over what is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from motet.training.optim import Muon, adamw
from motet.training.recipe import AdamW
from motet.training.recipe import Muon as MuonSetting


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], setting: AdamW | MuonSetting
) -> list[torch.optim.Optimizer]:
    """AdamW over everything (weight decay on matrices alone), or Muon on hidden matrices and AdamW on the rest."""
    if isinstance(setting, MuonSetting):
        hidden, others = _split(parameters)
        pairs = [(hidden, Muon, setting.lr), (others, adamw, setting.adamw_lr)]
        return [make(chosen, lr) for chosen, make, lr in pairs if chosen]
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": chosen, "weight_decay": decay}
        for chosen, decay in ((matrices, setting.weight_decay), (vectors, 0.0))
        if chosen
    ]
    return [torch.optim.AdamW(groups, lr=setting.lr, betas=setting.betas, fused=True)]


def _split(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of hidden layers; embeddings, heads, norms."""
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        outer = any(part in name for part in ("embed", "lm_head", "wte", "wpe", "head."))
        (hidden if parameter.ndim == 2 and not outer else others).append(parameter)
    return hidden, others
