"""Early exits of a model: the logits of its hidden states behind early layers, in the forward that it does anyway.

A hidden state that leaves early goes through the model's final norm, then beside the last layer's through the output
head and whatever the model does to logits (soft caps, scales): one product with the head's weights for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.engines.torch.recording import before_forward, first_tensor


class EarlyExits:
    """The layers, the final norm and the output head of a model. Modules are looked up when they are used: others may
    have taken their place since."""

    def __init__(self, model: PreTrainedModel, stack: nn.Module, layers: str, norm: str) -> None:
        self._model = model
        self._stack = stack
        self._layers = layers
        self._norm = norm

    @classmethod
    def of(cls, model: PreTrainedModel) -> EarlyExits | None:
        """Those of a model that has one list of all its layers, and beside it a norm; whether states flow from one to
        the other `flows` tells."""
        depth = model.config.get_text_config().num_hidden_layers
        for stack in model.modules():
            children = dict(stack.named_children())
            lists = [name for name, part in children.items() if isinstance(part, nn.ModuleList) and len(part) == depth]
            norms = [name for name, part in children.items() if "norm" in type(part).__name__.lower()]
            if lists and norms and isinstance(model.get_output_embeddings(), nn.Module):
                return cls(model, stack, lists[0], norms[-1])
        return None

    @property
    def layers(self) -> list[nn.Module]:
        return list(cast(nn.ModuleList, getattr(self._stack, self._layers)))

    @property
    def norm(self) -> nn.Module:
        return getattr(self._stack, self._norm)

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self._model.get_output_embeddings())

    @contextmanager
    def taken(self, rows: Mapping[int, Sequence[int]]) -> Generator[None]:
        """In a forward of (1, N) tokens within, the head's input is longer: behind it stand, layer by layer, the tokens
        `rows[layer]` as they are behind that many layers."""
        states: dict[int, Tensor] = {}
        entered = [*self.layers, self.norm]  # what is behind a layer enters the next module

        def keep(layer: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
                x = first_tensor(args, given)
                states[layer] = x[:, torch.tensor(rows[layer], dtype=torch.int64, device=x.device)]

            return hook

        def lengthen(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            early = torch.cat([states[layer] for layer in rows], 1)
            return (torch.cat([args[0], self.norm.forward(early)], 1), *args[1:]), __

        with before_forward({entered[layer]: keep(layer) for layer in rows} | {self.head: lengthen}):
            yield

    def flows(self, run: Callable[[], object]) -> bool:
        """Whether in a forward (1, N) of all tokens' logits each layer is given what the one before it has made, the
        norm what the last one has, and the head what the norm has: then an early exit skips layers and nothing else."""
        given: list[Tensor] = []
        made: list[Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            given.append(first_tensor(args, named))

        def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            made.append(output if isinstance(output, Tensor) else output[0])

        chain = [*self.layers, self.norm]
        with ExitStack() as hooks:
            hooks.enter_context(before_forward(dict.fromkeys([*chain, self.head], enter)))
            for module in chain:
                hooks.callback(module.register_forward_hook(leave).remove)
            run()
        pairs = list(zip(made, given[1:], strict=False))
        whole = len(given) == len(chain) + 1 and len(made) == len(chain)
        return whole and all(a.dim() == 3 and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
