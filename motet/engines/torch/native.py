"""Functions in C++ for what torch does slowly on a CPU.

The machine's C++ compiler builds each file when it is first needed, in some seconds, against the OpenMP library that
torch runs on (a second one would have threads of its own, and the two would wait for each other on one core); the
result is kept. Where the processor lacks an instruction or the machine a compiler, there is nothing, and torch's own
functions are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from motet.cache import default_cache
from motet.kernels.dispatch import VARIABLE

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")
TIMEOUT_S = 300  # of the compiler, which takes some
AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"})


@cache
def native(source: Path, needs: frozenset[str]) -> ctypes.CDLL | None:
    """The functions of a file, built where they were not yet; None where there can be none, the reason in the log.

    Args:
        needs: what the processor must be able to do, by Linux's names.
    """
    if os.environ.get(VARIABLE) == "eager" or not processor_flags() >= needs:
        return None
    try:
        return _load(source)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("torch does what %s would do faster: %s", source.name, reason)
        return None


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names; nothing where Linux does not say."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _load(source: Path) -> ctypes.CDLL:
    """Raises OSError where there is no compiler or no OpenMP library to build against, or the result cannot be loaded,
    SubprocessError where the compiler refuses."""
    compiler, openmp = _compiler(), _openmp()
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    wanted = "\0".join([*texts, *FLAGS, compiler, str(openmp)])
    kept = default_cache() / "native" / f"{source.stem}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}.so"
    if kept.is_file():
        return ctypes.CDLL(str(kept))
    log.info("compiling %s with %s", source.name, compiler)
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = Path(folder, "native.o"), Path(folder, "native.so")
        for command in (
            [compiler, *FLAGS, "-c", str(source), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), str(openmp), "-o", str(library)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        return ctypes.CDLL(str(_keep(library, kept)))


def _keep(library: Path, kept: Path) -> Path:
    """Where the library lies now: on a file system that is read only it is built by every process."""
    aside = kept.with_name(f".{kept.name}-{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, aside)
        aside.replace(kept)
    except OSError as error:
        log.info("%s is not kept: %s", kept, error.strerror)
        return library
    return kept


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise FileNotFoundError("there is no C++ compiler (g++)")


def _openmp() -> Path:
    """The OpenMP library that torch has loaded."""
    found = re.search(r"\S*/lib(?:gomp|iomp5)\S*\.so\S*", Path("/proc/self/maps").read_text(encoding="utf-8"))
    if found is None:
        raise FileNotFoundError("torch runs without an OpenMP library")
    return Path(found[0])
