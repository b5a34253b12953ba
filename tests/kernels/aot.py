"""Compiles every kernel for sm_90 without a GPU: `python -m tests.kernels.aot` prints one JSON line per variant.

Run in a process without TRITON_INTERPRET. The registers and spills are those that the assembler reports.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from motet.kernels.triton import (
    alpha,
    cascade,
    columns,
    decode,
    discriminator,
    divergence,
    sets,
    sparse,
    stats,
    top,
    warp,
)
from motet.kernels.triton.launch import BLOCK, MAX_REGISTERS, SMALL_BLOCK, TOP_CHUNK, resources
from motet.kernels.triton.noise import TILE

POINTERS = {
    "buffers": "*i64", "stream": "*i32", "sets": "*i32", "info": "*i32", "words": "*i32", "draw": "*i64",
    "token": "*i64", "token_out": "*i64", "rank": "*i64", "ids": "*i32", "out_ids": "*i32",
}  # fmt: skip
SCALARS = {"V", "W", "K", "S", "PAIRS", "SPLITS", "tiles", "number", "last", "width", "chunk", "PARTS", "COUNT"}
ROWS = (columns.ALL, columns.FILTERED, columns.RELAXED, columns.STORED, columns.TOPPED)
ALL, FILTERED, RELAXED, STORED, TOPPED = map(columns.as_int, ROWS)
TOOLS = Path(nvidia.__file__).parent / "bin"
EIGHT = {"num_warps": 8}
DTYPES = (0, 1, 3, 4, 5, 6, 7)  # float32, bfloat16 and mixed unaligned; all of them aligned
# slots of the rules' solvers, by dtype: these take long to compile, so of loads only the widest, the usual, the richest
SOLVED = {0: (3,), 5: (3, 8), 7: (3, 8)}
ASKS = [{"BOUND": bound, "TRACES": traces} for bound, traces in ((False, False), (False, True), (True, True))]
Variant = tuple[str, Any, dict[str, Any], dict[str, int]]


def variants() -> Iterator[Variant]:
    """(name, kernel, constants, launch options)."""
    flags = [
        (1, 0, 0, 0),
        (2, 0, 0, 0),
        (3, 0, 0, 0),
        (3, 1, 0, 0),
        (5, 2, 0, 0),
        (3, 1, 0, 1),
        (3, 2, 1, 1),
        (8, 2, 1, 1),
    ]
    for (slots, num_sets, rules, gated), dtype in itertools.product(flags, DTYPES):
        simplest = (slots, num_sets, rules, gated) == (3, 0, 0, 0)
        if dtype != 5 and not simplest and not (slots == 8 and dtype == 7):
            continue  # other shapes differ by dtype in their loads alone: one has them all, the richest two of them
        shape = {"K": slots, "S": num_sets, "RULES": bool(rules), "GATED": bool(gated), "TILE": TILE, "DTYPE": dtype}
        options = resources(bool(rules), bool(gated), dtype, slots)
        for asks in (ASKS if slots == 3 else ASKS[::2]) if dtype == 5 else ASKS[-1:] if dtype == 7 else ASKS[:1]:
            for store in (True,) if any(asks.values()) else (False, True):
                yield "scan", decode.scan, {**shape, **asks, "STORE": store, "ONLY": ALL}, options
            yield "finish", decode.finish, {**shape, **asks, "ONLY": ALL, "WIDTH": 256}, options
        if num_sets and dtype == 5 and slots != 5:
            yield "relax", decode.relax, {**shape, "WIDTH": 256}, options
            yield "scan", decode.scan, {**shape, **ASKS[-1], "STORE": True, "ONLY": RELAXED}, options
    for dtype in DTYPES:
        yield "stats_part", stats.stats_part, {"TILE": TILE, "DTYPE": dtype}, {"num_warps": 4}
        yield "base_rank", decode.base_rank, {"TILE": TILE, "DTYPE": dtype}, {"num_warps": 4}
        for bound, only in ((False, ALL), (True, STORED)):
            shape = {"BOUND": bound, "ONLY": only, "TILE": TILE, "DTYPE": dtype}
            yield "normalise", decode.normalise, shape, EIGHT
        yield "set_thresholds", sets.set_thresholds, {"BLOCK": BLOCK, "DTYPE": dtype}, EIGHT
        for slots in SOLVED.get(dtype, ()):
            shape = {"K": slots, "BLOCK": BLOCK, "DTYPE": dtype}
            yield (
                "discriminator",
                discriminator.discriminator_threshold,
                {**shape, "S": 1, "BLOCK": SMALL_BLOCK},
                {**EIGHT, "maxnreg": MAX_REGISTERS},
            )
            yield "divergence", divergence.divergence_threshold, {**shape, "BLOCK": SMALL_BLOCK}, EIGHT
            yield "cascade", cascade.cascade_share, {**shape, "BLOCK": SMALL_BLOCK}, EIGHT
            yield "sparse", sparse.sparse_disagreement, {**shape, "BLOCK": SMALL_BLOCK}, EIGHT
            yield "alpha_stats", alpha.alpha_stats, shape, EIGHT
            yield "alpha_targets", alpha.alpha_targets, shape, EIGHT
            yield "alpha_pass", alpha.alpha_pass, {**shape, "COUNT": 32}, EIGHT
    plain = {"RULES": False, "GATED": False, "TILE": TILE, **ASKS[0]}
    one_part = {"K": 1, "S": 0, **plain, "DTYPE": 5, "STORE": False, "ONLY": ALL}
    yield "scan", decode.scan, {**one_part, "tiles": 1, "SPLITS": 1}, {"num_warps": 4}  # as a 1 is specialised
    for only, dtype in itertools.product((ALL, FILTERED), (0, 4)):  # draws from composed rows
        again = {"K": 1, "S": 1, **plain, "DTYPE": dtype, "ONLY": only}
        yield "scan", decode.scan, {**again, "STORE": False}, {"num_warps": 4}
        yield "finish", decode.finish, {**again, "WIDTH": 256}, {"num_warps": 4}
    for width in (1, 16, 256, 512):
        yield "stats_end", stats.stats_end, {"WIDTH": width}, {"num_warps": 4}
        yield "alpha_centers", alpha.alpha_centers, {"WIDTH": width}, {"num_warps": 4}
        for count in (8, 32):
            yield "alpha_narrow", alpha.alpha_narrow, {"WIDTH": width, "COUNT": count}, EIGHT
    for only in (ALL, FILTERED):
        yield "warp", warp.warp_threshold, {"ONLY": only, "BLOCK": BLOCK}, EIGHT
    for has_ids, only in itertools.product((False, True), (ALL, TOPPED)):
        yield "top", top.top_tokens, {"HAS_IDS": has_ids, "ONLY": only, "BLOCK": TOP_CHUNK}, EIGHT


def source(kernel: Any, constants: dict[str, Any]) -> ASTSource:
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in SCALARS:
            signature[name] = "i32"
            if name == "V":  # every vocabulary of note is a multiple of 16
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = POINTERS.get(name, "*fp32")
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack and of local memory (spills) of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return {name.lower(): found[name] for name in ("REG", "STACK", "LOCAL", "SHARED")}


def report(index: int) -> str:
    """Compiles one of `variants`; its JSON line."""
    name, kernel, constants, launch = list(variants())[index]
    began = time.perf_counter()
    options = {"enable_fp_fusion": True, **launch}
    compiled: Any = cast("Any", triton).compile(
        source(kernel, constants), target=GPUTarget("cuda", 90, 32), options=options
    )
    line = {"kernel": name, "constants": constants, "seconds": round(time.perf_counter() - began, 2)}
    narrow = len(re.findall(r"ld\.global\.b16", compiled.asm["ptx"]))
    return json.dumps({**line, **usage(compiled.asm["cubin"]), "narrow_loads": narrow})


def main(names: Sequence[str]) -> None:
    chosen = [index for index, (name, *_) in enumerate(variants()) if not names or name in names]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for line in pool.imap_unordered(report, chosen):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
