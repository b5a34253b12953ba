"""For tests alone: Triton's interpreter passes for its CPU backend, so that Model Runner V2 runs without a GPU.

Python imports this by itself from a folder on PYTHONPATH, in vLLM's processes too.
"""

import os
from typing import Any, cast


class _Driver:
    """One that never offers itself, as the real one."""

    @staticmethod
    def is_active() -> bool:
        return False


class _Backend:
    driver = _Driver
    compiler = None


def _pretend() -> None:
    import triton.backends
    from triton.runtime import interpreter

    cast("dict[str, Any]", triton.backends.backends)["cpu"] = _Backend
    builder: Any = cast(Any, interpreter).InterpreterBuilder
    load = builder.create_masked_load

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)  # vLLM's n-gram kernel joins a scalar mask, which the interpreter widens
        return load(self, pointers, mask, *rest)

    builder.create_masked_load = masked_load


if os.environ.get("TRITON_INTERPRET") == "1":
    _pretend()
