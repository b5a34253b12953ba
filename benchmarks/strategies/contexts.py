"""Experiments on one model and what it reads: contexts that contradict its memory, facts, instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from benchmarks.real.knowledge import AUTHORS, CAPITALS, real_authors, world_facts
from benchmarks.real.setup import GEMMA, SMALL
from benchmarks.strategies.bench import Bench, Json, Target, chat, complete, logprobs, scored, text_of
from benchmarks.strategies.finding import Finding, compared
from benchmarks.strategies.proverbs import ENDINGS
from benchmarks.strategies.table import Experiment
from motet.evaluation.measures.answers import names

WORD = 6  # tokens: enough for a name
SENTENCE = 40
CONFLICT = 1.0  # α of context-aware decoding where context and memory contradict each other, its paper's

SUBJECTS = ("the sea", "a market", "winter", "a train", "a garden", "an old clock", "bread", "the moon")
INSTRUCTIONS: dict[str, Callable[[str], bool]] = {
    "Write one sentence about {s} in capital letters only.": str.isupper,
    "Write one sentence about {s} that has the word 'umbrella' in it.": lambda reply: names(reply, "umbrella"),
    "Write one sentence about {s} that begins with the word 'Perhaps'.": lambda reply: reply.startswith("Perhaps"),
    "Write one question about {s}.": lambda reply: reply.endswith("?"),
    "Write one sentence about {s} and put it in double quotes.": lambda reply: reply[:1] + reply[-1:] == '""',
}


class Conflict(NamedTuple):
    """`context` says that the query goes on with `said`; what most texts of the world say is `known`."""

    context: str
    query: str
    said: str
    known: str


def conflicts() -> Iterator[Conflict]:
    """Capitals and books with another one's answer, proverbs with another end."""
    for known, claim, query in (
        (CAPITALS, "The capital of {e} is {v}.", "The capital of {e} is"),
        (AUTHORS, "{e} was written by {v}.", "The author of {e} is"),
    ):
        values = list(known.values())
        for number, (entity, value) in enumerate(known.items()):
            other = values[(number + 1) % len(values)]
            yield Conflict(f"{claim.format(e=entity, v=other)} ", query.format(e=entity), other, value)
    for beginning, (usual, other) in ENDINGS.items():
        yield Conflict(f'Write a quote that ends in the word "{other}": ', beginning, other, usual)


def _follows(reply: str, conflict: Conflict) -> bool:
    return names(reply, conflict.said) and not names(reply, conflict.known)


def _in_conflict(bench: Bench, model: str, made: Callable[[Conflict], Json], claim: str) -> list[Finding]:
    """`made`: the composition for one conflict."""
    cases = list(conflicts())
    read = {"max_tokens": WORD, "stop": ["\n"]}
    answers = bench.ask_real(
        model,
        "/completions",
        {
            "ours": [complete({"base": "model", **made(c)}, c.context + c.query, **read) for c in cases],
            "plain": [complete("model", c.context + c.query, **read) for c in cases],
        },
    )
    followed = {
        name: [float(_follows(text_of(a), c)) for a, c in zip(found, cases, strict=True)]
        for name, found in answers.items()
    }
    measure = "answers of the context, where it contradicts memory"
    return [compared(claim, measure, "the model alone", followed["ours"], followed["plain"])]


def context_aware(model: str, bench: Bench) -> list[Finding]:
    def made(conflict: Conflict) -> Json:
        return {"strategy": "context_aware", "without": {"prompt": conflict.query}, "alpha": CONFLICT}

    return _in_conflict(bench, model, made, "trusts the context more than memory")


def hesitation(model: str, bench: Bench) -> list[Finding]:
    return _in_conflict(bench, model, lambda _: {"strategy": "hesitation"}, "heeds what is unlikely in the prompt")


def layer_contrast(model: str, bench: Bench) -> list[Finding]:
    """Facts as choices (without the mask, which scores have no use for), and as answers."""
    facts = [*world_facts(), *real_authors()]
    values = [*CAPITALS.values(), *AUTHORS.values()]
    choices, answers = (
        {
            "ours": {"strategy": "layer_contrast", "base": "model", "bucket": "high", **changed},
            "plain": "model",
        }
        for changed in ({"mask": None}, {})
    )
    asked = bench.ask_real(model, "/score", {name: [_choice(made, f) for f in facts] for name, made in choices.items()})
    chosen = {name: [float(max(logprobs(a)) == logprobs(a)[0]) for a in found] for name, found in asked.items()}
    told = bench.ask_real(
        model,
        "/completions",
        {name: [complete(made, _question(f), max_tokens=WORD * 2, stop=["\n"]) for f in facts]
         for name, made in answers.items()},
    )  # fmt: skip
    right = {
        name: [float(names(text_of(a), value)) for a, value in zip(found, values, strict=True)]
        for name, found in told.items()
    }
    claim, against = "late layers against early ones are more truthful", "the model alone"
    return [
        compared(claim, "true statement the likeliest of four", against, chosen["ours"], chosen["plain"]),
        compared(claim, "facts right in greedy answers", against, right["ours"], right["plain"]),
    ]


def _question(fact: Mapping[str, str]) -> str:
    return f"Question: {fact['question']}\nAnswer:"


def _choice(target: Target, fact: Json) -> Json:
    return scored(target, [f" {text}" for text in (fact["answer"], *fact["perturbed_answer"])], prompt=_question(fact))


def layer_contrast_demo(bench: Bench) -> list[Finding]:
    """The smaller base, which knows little; its wrong answers have the right one's words."""
    facts = [fact for fact in bench.records("held_out") if fact["perturbed_answer"]][: bench.limit]
    ours = {"strategy": "layer_contrast", "base": "small", "bucket": "high", "mask": None}
    subjects: dict[str, Target] = {"ours": ours, "plain": "small"}
    bodies = {
        name: [scored(made, [f["statement"], *f["perturbed_answer"]], prompt="") for f in facts]
        for name, made in subjects.items()
    }
    found = bench.ask("/score", bodies)
    chosen = {name: [float(max(logprobs(a)) == logprobs(a)[0]) for a in rows] for name, rows in found.items()}
    claim = "late layers against early ones are more truthful"
    return [compared(claim, "true statement the likeliest of six", "small alone", chosen["ours"], chosen["plain"])]


def guidance(bench: Bench) -> list[Finding]:
    """The paper's zero-shot setting, a last word to be found: here the value of a statement."""
    questions = bench.questions("held_out")
    subjects: dict[str, Target] = {"ours": {"strategy": "guidance", "base": "small"}, "plain": "small"}
    bodies = {name: [complete(made, q["completion"], stop=["."]) for q in questions] for name, made in subjects.items()}
    right = {
        name: [float(text_of(a) == q["value"]) for a, q in zip(found, questions, strict=True)]
        for name, found in bench.ask("/completions", bodies).items()
    }
    claim = "the prompt counts more: words that depend on it are found"
    return [compared(claim, "statements completed rightly", "small alone", right["ours"], right["plain"])]


def guidance_real(bench: Bench) -> list[Finding]:
    """Instructions whose keeping can be checked."""
    asked = [(text.format(s=s), kept) for text, kept in INSTRUCTIONS.items() for s in SUBJECTS]
    subjects: dict[str, Target] = {"ours": {"strategy": "guidance", "base": "model"}, "plain": "model"}
    bodies = {name: [chat(made, text, max_tokens=SENTENCE) for text, _ in asked] for name, made in subjects.items()}
    kept = {
        name: [float(check(text_of(a))) for a, (_, check) in zip(found, asked, strict=True)]
        for name, found in bench.ask_real(SMALL, "/chat/completions", bodies).items()
    }
    claim = "instructions are followed more closely"
    return [compared(claim, "instructions kept", "the model alone", kept["ours"], kept["plain"])]


def _real(strategy: str, run: Callable[[str, Bench], list[Finding]]) -> dict[str, Experiment]:
    return {
        f"{strategy}-{model}": Experiment(strategy, f"real: {model}", partial(run, model), real=True)
        for model in (GEMMA, SMALL)
    }


EXPERIMENTS = {
    **_real("context_aware", context_aware),
    **_real("hesitation", hesitation),
    **_real("layer_contrast", layer_contrast),
    "layer_contrast-demo": Experiment("layer_contrast", "demo: small", layer_contrast_demo),
    "guidance": Experiment("guidance", "demo: small", guidance),
    f"guidance-{SMALL}": Experiment("guidance", f"real: {SMALL}", guidance_real, real=True),
}
