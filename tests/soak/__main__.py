"""python -m tests.soak fuzz | aborts | mixed | connections | points | kills [--help]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak import fuzz as fuzzing
from tests.soak.aborts import aborts
from tests.soak.connections import PATIENCE_S, SCENARIOS, connections
from tests.soak.family import family_file
from tests.soak.kills import kills
from tests.soak.mixed import mixed
from tests.soak.points import POINTS, points
from tests.soak.process import GIB, Launch
from tests.soak.report import report

Arguments = argparse.Namespace


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--family", type=Path, help="folder with models.yaml [default: the tiny demo family]")
    common.add_argument("--python", default=sys.executable, help="the interpreter that serves")
    common.add_argument(
        "--flag", action="append", default=[], help="of `motet serve`, as --flag=--engine=vllm; repeats"
    )
    common.add_argument("--env", action="append", default=[], help="variable of the server, as NAME=VALUE; repeats")
    common.add_argument("--address-space", type=float, default=8, help="GiB that the server may map (0: no limit)")
    common.add_argument("--resident", type=float, default=3, help="GiB beyond which it is killed (0: no limit)")
    common.add_argument("--start-s", type=float, default=180, help="seconds within which it must be ready")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--out", type=Path, help="file for the last line, as benchmarks/results/soak-fuzz.json")
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, add in COMMANDS.items():
        command = commands.add_parser(name, parents=[common], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(run=add(command))
    return parser


def _launch(asked: Arguments) -> Launch:
    return Launch(
        file=family_file(asked.family),
        python=asked.python,
        flags=tuple(asked.flag),
        environment=dict(pair.split("=", 1) for pair in asked.env),
        address_space=int(asked.address_space * GIB),
        resident=int(asked.resident * GIB),
        start_s=asked.start_s,
    )


def _fuzz(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--requests", type=int, default=100_000)
    command.add_argument("--first", type=int, default=0, help="index of the first request")
    command.add_argument("--concurrency", type=int, default=8)
    command.add_argument("--explosive", type=float, default=0.02, help="share of grammars that are made to explode")
    command.add_argument("--findings", type=Path, help="file for the findings, a JSON line each [default: stderr]")
    command.add_argument("--replay", type=Path, help="send the findings of such a file again instead")
    return _run_fuzz


def _run_fuzz(asked: Arguments) -> Any:
    if asked.replay:
        findings = fuzzing.replay(_launch(asked), asked.replay, asked.explosive)
        outcome: Any = {"again": len(findings)}
    else:
        tally = fuzzing.fuzz(
            _launch(asked), asked.requests, asked.seed, asked.explosive, asked.concurrency, asked.first
        )
        findings, outcome = [*tally.findings, *tally.suspects], fuzzing.results(tally)
    with asked.findings.open("w") if asked.findings else sys.stderr as out:
        fuzzing.write_findings(findings, asked.seed, out)
    return outcome


def _aborts(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--requests", type=int, default=10_000)
    command.add_argument("--concurrency", type=int, default=16)
    return lambda asked: aborts(_launch(asked), asked.requests, asked.seed, asked.concurrency)


def _mixed(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--minutes", type=float, default=60)
    command.add_argument("--explosive", type=float, default=0.02, help="share of grammars that are made to explode")
    command.add_argument("--concurrency", type=int, default=4, help="clients of each of the two kinds")
    return lambda asked: mixed(_launch(asked), asked.minutes, asked.seed, asked.explosive, asked.concurrency)


def _connections(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds that they may be kept")
    command.add_argument("--only", nargs="*", choices=sorted(SCENARIOS), default=[])
    return lambda asked: connections(_launch(asked), asked.patience, asked.only)


def _points(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--only", nargs="*", type=int, choices=sorted(POINTS), default=[])
    return lambda asked: points(_launch(asked), asked.only)


def _kills(command: argparse.ArgumentParser) -> Callable[[Arguments], Any]:
    command.add_argument("--servers", type=int, default=20, help="servers that are ended")
    command.add_argument("--trainers", type=int, default=20, help="times that the trainer is killed")
    return lambda asked: kills(_launch(asked), asked.servers, asked.trainers, asked.seed)


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], Callable[[Arguments], Any]]] = {
    "fuzz": _fuzz,
    "aborts": _aborts,
    "mixed": _mixed,
    "connections": _connections,
    "points": _points,
    "kills": _kills,
}


def main() -> None:
    asked = _parser().parse_args()
    outcome = asked.run(asked)
    shown = {name: value for name, value in vars(asked).items() if name not in ("run", "out", "command")}
    report(asked.command, json.loads(json.dumps(shown, default=str)), outcome, asked.out)


if __name__ == "__main__":
    main()
