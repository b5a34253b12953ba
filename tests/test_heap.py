"""What is free in the C library's heap goes back to the system."""

from __future__ import annotations

import subprocess
import sys

# 160 MiB in blocks of 8 KiB, freed but for the last: the heap's end stays in use. In a process of its own, whose heap
# nobody else uses.
HELD_AND_FREED = """
import ctypes, time
from contextlib import nullcontext
import psutil
from motet.heap import heap_bytes, trimmed

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
MIB = 1 << 20

def resident() -> int:
    return psutil.Process().memory_info().rss // MIB

with {context}:
    first, empty = resident(), heap_bytes() // MIB
    blocks = [libc.malloc(8192) for _ in range(20_000)]
    for block in blocks:
        ctypes.memset(block, 1, 8192)
    held, used = resident() - first, heap_bytes() // MIB - empty
    for block in blocks[:-1]:
        libc.free(block)
    deadline = time.monotonic() + {seconds}
    while resident() - first > 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    print(held, used, resident() - first, heap_bytes() // MIB - empty)
"""


def figures(context: str, seconds: float) -> tuple[int, ...]:
    """MiB beyond the beginning: (resident, in use) while all is held, the same when all but one block are freed."""
    program = HELD_AND_FREED.format(context=context, seconds=seconds)
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()))


def test_holes_go_back_to_the_system() -> None:
    held, used, left, in_use = figures("trimmed(0.05)", 20)
    assert held > 150
    assert used > 150
    assert left < 60
    assert in_use < 10


def test_they_stay_without() -> None:
    """What the server does it for; should a C library do it by itself one day, the thread can go."""
    _, _, left, in_use = figures("nullcontext()", 0.5)
    assert left > 150
    assert in_use < 10
