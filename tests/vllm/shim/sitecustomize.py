"""For tests alone: Triton's interpreter passes for its CPU backend, so that Model Runner V2 runs without a GPU.

Python imports this by itself from a folder on PYTHONPATH, in vLLM's processes too.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from typing import Any, cast

    import triton.backends

    class _Driver:
        """One that never offers itself, as the real one."""

        @staticmethod
        def is_active() -> bool:
            return False

    class _Backend:
        driver = _Driver
        compiler = None

    cast("dict[str, Any]", triton.backends.backends)["cpu"] = _Backend
