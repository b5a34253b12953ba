"""How much memory models take, and how much this machine has for them."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CGROUP_V1 = CGROUP / "memory"
PAGES = ("inactive_file", "active_file")  # of files: given back when memory is wanted
GIB = 1 << 30


def available_bytes(device: str) -> int:
    """What can still be allocated: of a CUDA device what its driver says, else of the machine or of the container,
    whichever has less."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    limits = [_left(CGROUP / "memory.max", CGROUP / "memory.current", CGROUP / "memory.stat")]
    limits.append(
        _left(CGROUP_V1 / "memory.limit_in_bytes", CGROUP_V1 / "memory.usage_in_bytes", CGROUP_V1 / "memory.stat")
    )
    return min(int(psutil.virtual_memory().available), *(left for left in limits if left is not None), 1 << 62)


def _left(limit: Path, used: Path, stat: Path) -> int | None:
    """What a control group still allows, its page cache counted as free; None where it sets no limit."""
    try:
        allowed = int(limit.read_text())
        cached = dict(line.split() for line in stat.read_text().splitlines())
        return allowed - int(used.read_text()) + sum(int(cached.get(name, 0)) for name in PAGES)
    except (OSError, ValueError):  # no such group, or "max"
        return None


def gib(size: float) -> str:
    """For people: `0.53 GiB`."""
    return f"{size / GIB:,.2f} GiB" if size < 1 << 60 else f"{size / GIB:g} GiB"
