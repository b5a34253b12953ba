"""What vLLM's front end asks before it takes a request, on both of its runners."""

from __future__ import annotations

from typing import Any

from motet.engines.vllm.config import known_members, known_width
from motet.engines.vllm.internals import touch
from motet.engines.vllm.requests import row_of

_First: Any = touch("LogitsProcessor")
_Second: Any = touch("LogitsProcessorV2")


class Check(_First, _Second):
    """Named in vLLM's `logits_processors`: refuses bad compositions, changes no logits."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, which vLLM answers with a 400."""
        row_of(sampling_params.extra_args, (), [], known_members(), vocab_size=known_width())

    def __init__(self, *_: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def add_request(self, *_: Any) -> bool:
        return False

    def apply(self, logits: Any, *_: Any) -> Any:
        return logits
