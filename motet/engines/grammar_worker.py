"""The process in which a grammar is compiled first: it may be killed, run out of memory or of stack, and takes nothing
along. It imports little, and ends when its connection does.

`python -m motet.engines.grammar_worker FD`, started by `grammar_process`. It says READY. Every other message is JSON:
asked {"tokenizer": id, "text"}; answered {"lark", "bytes"}, {"refused": reason} or {"unknown": true}, to be asked again
with "load": {"text", "size", "end"} of the tokenizer.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import psutil

from motet.engines.grammar_limits import GrammarError, check
from motet.engines.guidance import as_lark, failure_of, matcher_of
from motet.heap import heap_bytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer

COMPILE_SECONDS = 2.0  # of computing, whatever else the machine does
COMPILE_BYTES = 512 << 20  # of address space beyond what the process has before
STACK_BYTES = 4 << 20  # what compiles here compiles on the server's larger stacks too
READY = b"ready"
TOKENIZERS = 4  # kept; the larger ones take 130 MiB


class Worker:
    """Answers one message after another."""

    def __init__(self) -> None:
        self._tokenizers: OrderedDict[int, LLTokenizer] = OrderedDict()

    def serve(self, connection: Connection) -> None:
        connection.send_bytes(READY)
        while True:
            try:
                asked = json.loads(connection.recv_bytes())
            except EOFError:
                return
            connection.send_bytes(json.dumps(self._answer(asked)).encode())

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        environment = self._tokenizer(asked)
        if environment is None:
            return {"unknown": True}
        try:
            with Bounds():
                return _compiled(environment, asked["text"])
        except (GrammarError, ValueError) as error:
            return {"refused": str(error)}
        except RecursionError:
            return {"refused": "the grammar is nested too deeply"}
        except MemoryError:
            return {"refused": too_large()}

    def _tokenizer(self, asked: dict[str, Any]) -> LLTokenizer | None:
        from llguidance import LLTokenizer

        number: int = asked["tokenizer"]
        if load := asked.get("load"):
            self._tokenizers[number] = LLTokenizer(load["text"], n_vocab=load["size"], eos_token=load["end"])
            if len(self._tokenizers) > TOKENIZERS:
                self._tokenizers.popitem(last=False)
        return self._tokenizers.get(number)


class Bounds:
    """Within it, more computing than COMPILE_SECONDS ends the process, and more memory than COMPILE_BYTES is not there:
    Rust's allocator aborts, Python's raises MemoryError."""

    def __enter__(self) -> None:
        _limit_memory(psutil.Process().memory_info().vms + COMPILE_BYTES)
        signal.setitimer(signal.ITIMER_PROF, COMPILE_SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_memory(None)


def _limit_memory(num_bytes: int | None) -> None:
    """None: as much as the machine's own limit lets the process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard if num_bytes is None else num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _compiled(environment: LLTokenizer, text: str) -> dict[str, Any]:
    lark = as_lark(text)
    check(lark)
    before = heap_bytes()
    matcher = matcher_of(environment, lark)
    held = heap_bytes() - before
    first = matcher.deep_copy()
    first.compute_bitmask()
    if failure := failure_of(first, 0):
        raise GrammarError(failure)
    return {"lark": lark, "bytes": max(held, 0) + len(lark)}


def too_large() -> str:
    return f"the grammar cannot be compiled within {COMPILE_BYTES >> 20} MiB of memory; make it smaller"


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=Worker().serve, args=(connection,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
