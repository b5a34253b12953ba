"""The C library's heap: how much is in use, and what is free given back to the system.

glibc gives back by itself only what is free at a heap's end. Requests of all sizes leave holes in front of what stays,
and a server under mixed load would grow by some MiB per 10,000 requests for hours, with as much in use as before.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import psutil

TRIM_S = 30.0  # a trim takes some milliseconds


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>; names of what is not read here are shortened."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", *"osh", "mapped", *"uf", "used", "free", "keep"))


def heap_bytes() -> int:
    """What the process has allocated: glibc's own count, which knows freed memory; elsewhere the resident set."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return psutil.Process().memory_info().rss
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.used + info.mapped)


@contextmanager
def trimmed(every: float = TRIM_S) -> Generator[None]:
    """Within, free pages go back to the system every so many seconds, from a thread of their own; where the C library
    is not glibc nothing happens."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_trim, args=(trim, over, every), name="motet-heap", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _trim(trim: Callable[[int], int], over: threading.Event, every: float) -> None:
    while not over.wait(every):
        trim(0)
