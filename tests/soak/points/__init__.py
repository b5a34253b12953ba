"""`python -m tests.soak points`: the eighteen ways in which a server of 2026-11-28 did not hold, one probe each.

Numbers are those of the report. A probe asks for the whole kind of a fault, not for the one input that showed it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.soak.points import answers, explosions, life, people, stalls
from tests.soak.points.lab import Check, Lab, Probe
from tests.soak.process import Launch

POINTS: dict[int, tuple[str, Probe]] = {
    1: ("the grammar library crashes", explosions.grammar_crash),
    2: ("grammars fill the memory", explosions.grammar_memory),
    3: ("error texts take quadratic time", explosions.error_text),
    4: ("tokenising holds the interpreter", stalls.tokenizing),
    5: ("own patterns read a text again and again", explosions.own_patterns),
    6: ("compiling makes others wait", stalls.compiling),
    7: ("large legal requests make others wait", stalls.large_answers),
    8: ("one token behind long prompts", stalls.behind_long_prompts),
    9: ("clients hold what others need", people.slow_clients),
    10: ("memory grows under load", stalls.memory_under_load),
    11: ("an empty key opens the door", people.empty_keys),
    12: ("cached tokens tell of other keys", people.cached_prefixes),
    13: ("input writes lines into the log", people.forged_logs),
    14: ("checkpoints bring code", people.carried_code),
    15: ("wrong answers to bad input", answers.bad_input),
    16: ("an end that nobody is told of", life.ends_are_told),
    17: ("bad starts are served, or tracebacks", life.bad_starts),
    18: ("description, warning, Retry-After", answers.description),
}


def points(launch: Launch, only: Sequence[int] = ()) -> dict[str, Any]:
    """Runs the probes and prints a table; a probe that itself fails has not held."""
    results: dict[str, Any] = {}
    for number, (title, probe) in POINTS.items():
        if only and number not in only:
            continue
        began = time.monotonic()
        checks = _run(launch, probe)
        held = all(check.held for check in checks)
        results[str(number)] = {"title": title, "held": held, "checks": [asdict(check) for check in checks]}
        print(f"{number:2} {'held    ' if held else 'NOT HELD'} {title} ({time.monotonic() - began:.0f} s)", flush=True)
        for check in checks:
            print(f"      {'+' if check.held else '-'} {check.what}: {check.saw}"[:400], flush=True)
    print(f"{sum(result['held'] for result in results.values())} of {len(results)} points held")
    return results


def _run(launch: Launch, probe: Probe) -> list[Check]:
    with tempfile.TemporaryDirectory(prefix="motet-soak-") as scratch:
        lab = Lab(launch, Path(scratch))
        try:
            return probe(lab)
        except Exception as error:
            return [Check("the probe itself", False, f"{type(error).__name__}: {error}"[-500:])]
        finally:
            lab.close()
