"""Compiles every kernel for sm_90 without a GPU: `python -m tests.kernels.aot` prints one JSON line per variant.

Run in a process without TRITON_INTERPRET. The registers and spills are those that the assembler reports.
"""

from __future__ import annotations

import itertools
import json
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

from motet.kernels.triton import alpha, decode, discriminator, sets, stats, top, warp
from motet.kernels.triton.launch import BLOCK, MAX_REGISTERS, SMALL_BLOCK, TOP_CHUNK, resources
from motet.kernels.triton.noise import TILE

POINTERS = {
    "buffers": "*i64", "stream": "*i32", "sets": "*i32", "seed": "*i64", "forced": "*i64", "token_out": "*i64",
    "ids": "*i32", "out_ids": "*i32",
}  # fmt: skip
SCALARS = {"V", "K", "S", "SPLITS", "tiles", "number", "last", "width", "chunk", "PARTS", "COUNT"}
TOOLS = Path(nvidia.__file__).parent / "bin"
EIGHT = {"num_warps": 8}
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
    for (slots, num_sets, rules, gated), dtype in itertools.product(flags, range(4)):
        shape = {"K": slots, "S": num_sets, "RULES": bool(rules), "GATED": bool(gated), "TILE": TILE, "DTYPE": dtype}
        options = resources(bool(rules), bool(gated), dtype, slots)
        for store in (False, True):
            yield "scan", decode.scan, {**shape, "STORE": store}, options
        yield "finish", decode.finish, {**shape, "WIDTH": 128}, options
    for dtype in range(4):
        yield "stats_part", stats.stats_part, {"TILE": TILE, "DTYPE": dtype}, {"num_warps": 4}
        yield "normalise", decode.normalise, {"TILE": TILE, "DTYPE": dtype}, {"num_warps": 4}
        yield "set_thresholds", sets.set_thresholds, {"BLOCK": BLOCK, "DTYPE": dtype}, EIGHT
        for slots in (3, 8):
            shape = {"K": slots, "BLOCK": BLOCK, "DTYPE": dtype}
            yield (
                "discriminator",
                discriminator.discriminator_threshold,
                {**shape, "S": 1, "BLOCK": SMALL_BLOCK},
                {**EIGHT, "maxnreg": MAX_REGISTERS},
            )
            yield "alpha_targets", alpha.alpha_targets, shape, EIGHT
            yield "alpha_pass", alpha.alpha_pass, shape, EIGHT
    for width in (1, 16, 256):
        yield "stats_end", stats.stats_end, {"WIDTH": width}, {"num_warps": 4}
        yield "alpha_narrow", alpha.alpha_narrow, {"WIDTH": width}, {"num_warps": 4}
    yield "warp", warp.warp_threshold, {"BLOCK": BLOCK}, EIGHT
    for has_ids in (False, True):
        yield "top", top.top_tokens, {"HAS_IDS": has_ids, "BLOCK": TOP_CHUNK}, EIGHT


def source(kernel: Any, constants: dict[str, Any]) -> ASTSource:
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in SCALARS:
            signature[name] = "i32"
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


def main(names: Sequence[str]) -> None:
    for name, kernel, constants, launch in variants():
        if names and name not in names:
            continue
        began = time.perf_counter()
        options = {"enable_fp_fusion": True, **launch}
        compiled: Any = cast("Any", triton).compile(
            source(kernel, constants), target=GPUTarget("cuda", 90, 32), options=options
        )
        line = {"kernel": name, "constants": constants, "seconds": round(time.perf_counter() - began, 2)}
        print(json.dumps({**line, **usage(compiled.asm["cubin"])}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
