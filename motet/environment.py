"""What torch's libraries read from the environment once, when torch is imported: it must be set before."""

from __future__ import annotations

from collections.abc import Mapping

WANTED = {
    # Threads that wait by spinning hold a core: on a loaded machine torch is 25 times slower so. Threads that sleep at
    # once are woken too late for the many short operations of a step. So they spin for about as long as Python takes
    # from one operation to the next (some 0.1 ms), and sleep then.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    # oneDNN compiles kernels for every shape that it multiplies, and keeps the last thousand; torch keeps as many
    # descriptions of them. With up to 0.4 MiB a shape a server that meets many numbers of rows would grow for hours. To
    # make one anew takes 1.5 ms.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}


def missing(environment: Mapping[str, str]) -> dict[str, str]:
    """What an environment does not say yet. Nothing else may be written again: libraries that name processes
    (setproctitle) find their place by the variables that a process was started with, as these lie in memory."""
    return {name: value for name, value in WANTED.items() if name not in environment}
