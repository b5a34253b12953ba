"""A linear layer with a low-rank adapter, computed in the type of its input."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor


class AdaptedLinear(Linear):
    """`x Wᵀ + b + s · (x Aᵀ) Bᵀ` as peft's own layer computes it, which is its parent and saves, merges and unloads it.

    Peft casts the input to the adapter's float32 and adds what comes back in passes over the whole output; here the
    adapter's float32 weights are cast to the input's type, and the product adds itself to what it is added to.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names: list[str] = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or self.lora_variant or kwargs.get("adapter_names") is not None:
            return super().forward(x, *args, **kwargs)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in names:
            down, up = (cast("Any", part[name]).weight for part in (self.lora_A, self.lora_B))
            narrow = F.linear(cast("Any", self.lora_dropout[name])(x), down.to(x.dtype)).flatten(0, -2)
            scale = cast("float", self.scaling[name])
            result = torch.addmm(result.flatten(0, -2), narrow, up.to(x.dtype).T, alpha=scale).view(result.shape)
        return result
