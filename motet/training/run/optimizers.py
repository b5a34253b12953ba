"""The recipe's optimisers over what is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from motet.training.optim import muon_and_adamw
from motet.training.recipe import AdamW, Muon


def make_optimizers(parameters: Mapping[str, nn.Parameter], setting: AdamW | Muon) -> list[torch.optim.Optimizer]:
    """AdamW over everything (weight decay on matrices alone), or Muon on hidden matrices and AdamW on the rest."""
    if isinstance(setting, Muon):
        return muon_and_adamw(parameters, setting.lr, setting.adamw_lr)
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": chosen, "weight_decay": decay}
        for chosen, decay in ((matrices, setting.weight_decay), (vectors, 0.0))
        if chosen
    ]
    return [torch.optim.AdamW(groups, lr=setting.lr, betas=setting.betas, fused=True)]
