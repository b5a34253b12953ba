"""The command line of the load generator."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from motet_client.load.report import summary, table
from motet_client.load.run import Load, run
from motet_client.load.work import Job, Target, jobs, read_mix, read_prompts, synthetic_prompts


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        work = _jobs(options)
    except (OSError, ValueError) as error:
        sys.exit(f"motet-load: {error}")
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    load = Load(options.url.rstrip("/"), headers, options.concurrency, options.rate, options.timeout, options.seed)
    measured, seconds = asyncio.run(run(load, work, options.warmup))
    told = summary(measured, seconds)
    print(table(told))
    print(json.dumps({"settings": _settings(options), **told}, ensure_ascii=False))
    sys.exit(0 if told["all"]["answered"] else 1)


def _jobs(options: argparse.Namespace) -> list[Job]:
    """Warm-up and measured requests, drawn with one seed."""
    targets = [*map(_target, options.model), *(read_mix(options.mix) if options.mix else [])]
    if not targets:
        raise ValueError("give --model NAME or --mix FILE: what shall answer?")
    count = options.requests + options.warmup
    prompts = read_prompts(options.prompts) if options.prompts else None
    if prompts is None:
        prompts = synthetic_prompts(count, options.words, options.seed)
    fixed = {"temperature": options.temperature} | ({"ignore_eos": True} if options.ignore_eos else {})
    return jobs(count, targets, prompts, options.max_tokens, fixed, options.seed)


def _target(text: str) -> Target:
    name, _, weight = text.partition("=")
    try:
        return Target(name, float(weight or 1), {"model": name})
    except ValueError:
        raise ValueError(f"--model {text!r}: write NAME or NAME=WEIGHT, the weight a positive number") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="motet-load", description="Streams answers of an OpenAI-compatible server and measures them."
    )
    add = parser.add_argument
    add("url", help="base URL with /v1")
    add("--model", action="append", default=[], metavar="NAME[=WEIGHT]", help="what answers; may be repeated")
    add("--mix", type=Path, help="JSON: a list of request bodies with `model`, `composition`, …, each with `weight`")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=_count, default=1, help="closed loop: so many requests at any time")
    pace.add_argument("--rate", type=_positive, help="open loop: requests per second, at times of a Poisson process")
    add("--requests", type=_count, default=100, help="how many are measured")
    add("--warmup", type=_whole, default=0, help="how many go before them, one after the other, and are not")
    add("--prompts", type=Path, help="JSON lines with `messages` (chat) or `prompt` (completions), repeated in order")
    add("--words", type=_range, default=(16, 16), metavar="N[:M]", help="without --prompts: words of made-up questions")
    add("--max-tokens", type=_range, default=(64, 64), metavar="N[:M]")
    add("--temperature", type=float, default=1.0)
    add("--ignore-eos", action="store_true", help="answers are as long as --max-tokens says")
    add("--timeout", type=_positive, default=600.0, help="seconds that a request may take")
    add("--seed", type=int, default=0, help="of arrivals, lengths and of what answers")
    add("--key", default=os.environ.get("OPENAI_API_KEY"), help="API key; else OPENAI_API_KEY")
    return parser


def _settings(options: argparse.Namespace) -> dict[str, object]:
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {name: value for name, value in told.items() if name != "key"}


def _whole(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return int(text)


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


def _positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    found = _count(low), _count(high or low)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must ascend, got {text}")
    return found


if __name__ == "__main__":
    main()
