"""report.json with every number, report.md for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from motet.audit.answers import PLAUSIBLE, TokenShift
from motet.audit.novelty import Exploration, NoveltySample
from motet.audit.pair import Pair
from motet.audit.refusals import BEGINNING
from motet.audit.run import Audit
from motet.audit.settings import AuditSettings

SHOWN_CHARACTERS = 160
METHOD = f"""## How this was measured

- **Divergence**: KL(expert ‖ partner) in nats, mean over the positions of the expert's greedy answer.
- **Tokens**: mean of log p(expert) − log p(partner) over all those positions, among tokens with a mean probability of
  at least {PLAUSIBLE:g} under the model that prefers them.
- **Refusal**: one of a list of phrases (`motet/audit/refusals.py`) or of the patterns that were given, in the first
  {BEGINNING} characters of the greedy answer.
- **Off-topic**: read behind the answer by the partner, the prompt's text is no likelier than behind the answers to
  other prompts of the list, on average. Answers that have nothing to do with their prompts are so every other time.
- **Contrast**: samples from the expert's log-probs minus λ times the partner's, among the expert's plausible tokens
  (arXiv:2410.14765). In the iterative form a copy of the partner learns each round's samples. Gain: mean of
  log p(expert) − log p(partner) per token.
"""


def write_report(
    folder: Path, name: str, partner: str, pair: Pair, audit: Audit, settings: AuditSettings
) -> list[Path]:
    """Writes both files; their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = describe(name, partner, pair, audit, settings)
    files = [folder / "report.json", folder / "report.md"]
    files[0].write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(markdown(name, partner, pair, audit, settings), encoding="utf-8")
    return files


def describe(name: str, partner: str, pair: Pair, audit: Audit, settings: AuditSettings) -> dict[str, Any]:
    """The audit as JSON."""
    return {
        "expert": name,
        "partner": partner,
        "bundle": None if pair.bundle is None else pair.bundle.recommendation(),
        "note": pair.note,
        "settings": asdict(settings),
        "rates": {
            "refusal": audit.refusal_rate,
            "partner_refusal": audit.partner_refusal_rate,
            "off_topic": audit.off_topic_rate,
        },
        "mean_kl": audit.mean_kl,
        "prompts": [
            asdict(answer) | asdict(judged) for answer, judged in zip(audit.shifts.answers, audit.judged, strict=True)
        ],
        "raised": [asdict(token) for token in audit.shifts.raised],
        "lowered": [asdict(token) for token in audit.shifts.lowered],
        "starts": list(audit.starts),
        "plain": asdict(audit.plain),
        "iterative": asdict(audit.iterative),
    }


def markdown(name: str, partner: str, pair: Pair, audit: Audit, settings: AuditSettings) -> str:
    parts = [
        f"# What {name} learned",
        f"Set against `{partner}`, as far as {len(audit.judged)} prompts and {settings.samples} samples show."
        + (f" **Its bundle names another partner: {pair.note}.**" if pair.note else ""),
        _summary(audit),
        "## Most shifted prompts\n\n" + _prompts(audit, settings.shown),
        "## Tokens that became likelier\n\n" + _tokens(audit.shifts.raised),
        "## Tokens that became less likely\n\n" + _tokens(audit.shifts.lowered),
        "## Contrastive generation, plain form\n\n" + _samples(audit, audit.plain, settings.shown),
        "## Contrastive generation, iterative form\n\n"
        + _learning(audit.iterative)
        + _samples(audit, audit.iterative, settings.shown),
        METHOD,
    ]
    return "\n\n".join(parts)


def _summary(audit: Audit) -> str:
    topic = audit.off_topic_rate
    rows = (
        ("mean divergence from the partner", f"{audit.mean_kl:.3f} nats per token"),
        ("refusals", f"{audit.refusal_rate:.1%} (partner {audit.partner_refusal_rate:.1%})"),
        ("off-topic answers", "not measurable" if topic is None else f"{topic:.1%}"),
        ("distinct bigrams in samples, plain form", f"{audit.plain.distinct_2:.1%}"),
        ("distinct bigrams in samples, iterative form", f"{audit.iterative.distinct_2:.1%}"),
    )
    return _table(("", "expert"), rows)


def _prompts(audit: Audit, count: int) -> str:
    pairs = sorted(zip(audit.shifts.answers, audit.judged, strict=True), key=lambda pair: -pair[0].kl)
    rows = [
        (f"{answer.kl:.3f}", answer.prompt, answer.expert, answer.partner, _marks(judged.refusal, judged.off_topic))
        for answer, judged in pairs[:count]
    ]
    return _table(("KL", "prompt", "expert", "partner", "judged"), rows)


def _marks(refusal: bool, off_topic: bool | None) -> str:
    return ", ".join([*(["refusal"] if refusal else []), *(["off-topic"] if off_topic else [])])


def _tokens(tokens: Sequence[TokenShift]) -> str:
    rows = [
        (f"`{token.text!r}`", f"{token.shift:+.2f}", f"{token.expert:.4f}", f"{token.partner:.4f}", str(token.written))
        for token in tokens
    ]
    return _table(("token", "shift (nats)", "p(expert)", "p(partner)", "written"), rows)


def _samples(audit: Audit, exploration: Exploration, count: int) -> str:
    def row(sample: NoveltySample) -> tuple[str, ...]:
        return f"{sample.gain:+.2f}", str(sample.round + 1), audit.starts[sample.start], sample.text

    return _table(("gain", "round", "behind", "text"), [row(sample) for sample in exploration.samples[:count]])


def _learning(exploration: Exploration) -> str:
    lines = [
        f"After round {step.round + 1} the copy of the partner learned what was found in {step.steps} steps: "
        f"{step.before:.2f} → {step.after:.2f} nats per token."
        for step in exploration.learning
    ]
    return "\n".join(f"- {line}" for line in lines) + ("\n\n" if lines else "")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [list(headings), ["---"] * len(headings), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """One line that cannot break the table."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= SHOWN_CHARACTERS else flat[: SHOWN_CHARACTERS - 1] + "…"
    return short.replace("|", "\\|").replace("<", "&lt;")
