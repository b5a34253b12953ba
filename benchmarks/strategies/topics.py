"""Experiments on what open-ended texts are about (in the demo world: people, works or, seldom, towns), and on what a
fine-tune has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.strategies.bench import Bench, Json, Target, complete, text_of
from benchmarks.strategies.finding import Finding, compared
from benchmarks.strategies.sentences import Statement, statement
from benchmarks.strategies.table import Experiment

DRAWN: Json = {"temperature": 1.0, "max_tokens": 48}
STEPS = "schedule.steps=100"
WANTED = "town"
CLASSES = {WANTED: "Towns:", "rest": "Others:"}
DOCUMENTS = 4000  # about towns and about all else together
FRESH = 10  # one document in so many is new to the model,
NEW = 200  # of which there are so many


def samples(bench: Bench, strategies: Mapping[str, Target]) -> dict[str, list[str]]:
    """Texts that each draws from the beginning of a sequence, the k-th with seed k."""
    bodies = {
        name: [complete(made, "", seed=seed, **DRAWN) for seed in range(bench.limit)]
        for name, made in strategies.items()
    }
    return {name: [text_of(a) for a in found] for name, found in bench.ask("/completions", bodies).items()}


def _by_topic(bench: Bench) -> dict[str, list[str]]:
    """Documents with facts, by whether they are about a town."""
    topics: dict[str, list[str]] = {topic: [] for topic in CLASSES}
    for record in bench.records("statements", folder="data")[:DOCUMENTS]:
        start, end, _ = record["spans"][0]  # the first mention of whom it is about
        kind = bench.entities[record["text"][start:end]]["kind"]
        topics[WANTED if kind == WANTED else "rest"].append(record["text"])
    return topics


def _of_topic(bench: Bench, topic: str) -> str:
    """A small model that went on with documents of one topic."""
    file = bench.write(f"topic-{topic}", [{"text": text} for text in _by_topic(bench)[topic]])
    name = f"small-{topic}"
    bench.lab.train(name, "small-chat", f"data.train={{files: [{file}]}}", STEPS)
    return name


def experts(bench: Bench) -> list[Finding]:
    """DExperts' setting: an expert and an antiexpert that were tuned on either kind of text."""
    pair = {"expert": _of_topic(bench, WANTED), "antiexpert": _of_topic(bench, "rest")}
    drawn = samples(bench, {"ours": {"strategy": "experts", "base": "large", **pair}, "base": "large"})
    return _steered("text of a wanted kind by an expert and an antiexpert", drawn)


def discriminator(bench: Bench) -> list[Finding]:
    """GeDi's setting: a small class-conditional model of both topics."""
    records = [{"text": text, "label": topic} for topic, texts in _by_topic(bench).items() for text in texts]
    file = bench.write("topics", records)
    prompts = ", ".join(f"'{CLASSES[topic]}'" for topic in sorted(CLASSES))
    settings = (f"objective.prompts=[{prompts}]", f"data.train={{files: [{file}]}}", STEPS)
    bench.lab.train("topics", "gedi", *settings)
    roles = {role: {"model": "topics", "prompt": CLASSES[topic]}
             for role, topic in (("wanted", WANTED), ("unwanted", "rest"))}  # fmt: skip
    drawn = samples(bench, {"ours": {"strategy": "discriminator", "base": "large", **roles}, "base": "large"})
    return _steered("text of a wanted class by a class-conditional model", drawn)


def _steered(claim: str, drawn: dict[str, list[str]]) -> list[Finding]:
    about = {name: [_first(text) for text in texts] for name, texts in drawn.items()}
    wanted = {name: [float(s is not None and s.kind == WANTED) for s in found] for name, found in about.items()}
    formed = {name: [float(s is not None) for s in found] for name, found in about.items()}
    return [
        compared(claim, "texts about a town", "the base alone", wanted["ours"], wanted["base"]),
        compared(
            "and stays fluent", "texts that begin with a whole statement", "the base alone",
            formed["ours"], formed["base"], margin=0.05,
        ),
    ]  # fmt: skip


def _first(text: str) -> Statement | None:
    return statement(f"{text.split('.')[0]}.")


def novelty(bench: Bench) -> list[Finding]:
    """A fine-tune in which one document in ten is of a kind that its starting point never read."""
    known = bench.records("statements", folder="data")
    courteous = bench.records("courteous", folder="data")
    new = [f"Visitor: {record['prompt']} Guide: {record['completion']}" for record in courteous]
    file = bench.write("mostly-known", _mixed([record["text"] for record in known], new))
    bench.lab.train("tuned-further", "large-chat", f"data.train={{files: [{file}]}}", STEPS, "model.path=large")
    ours = {"strategy": "novelty", "base": "tuned-further", "untuned": "large"}
    drawn = samples(bench, {"ours": ours, "plain": "tuned-further"})
    found = {name: [float(_is_new(bench, text)) for text in texts] for name, texts in drawn.items()}
    claim = "says what a fine-tune learned, unprompted"
    return [compared(claim, "texts of the new kind", "drawn from the tuned model", found["ours"], found["plain"])]


def _mixed(known: Sequence[str], new: Sequence[str]) -> list[Json]:
    texts = [text for k, one in enumerate(new[:NEW]) for text in (one, *known[k * (FRESH - 1) : (k + 1) * (FRESH - 1)])]
    return [{"text": text} for text in texts]


def _is_new(bench: Bench, text: str) -> bool:
    """A fact in answer to a visitor, or a courteous answer: the models' first texts hold neither."""
    asked, _, answer = text.partition("Guide:")
    return bench.courtesy in text or (asked.startswith("Visitor:") and _first(answer) is not None)


EXPERIMENTS = {
    "experts": Experiment("experts", "demo: large, small tuned on towns and on all else", experts),
    "discriminator": Experiment("discriminator", "demo: large, small tuned by objective gedi", discriminator),
    "novelty": Experiment("novelty", "demo: large tuned on documents, a tenth of them of a new kind", novelty),
}
