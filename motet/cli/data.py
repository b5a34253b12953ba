"""`motet data preview|lengths|curate|cluster FILE...`: look at data, clean it, and part it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from motet.training.data.curation.correction import Answer
    from motet.training.data.curation.curate import Curation, Thresholds
    from motet.training.data.dataset import TokenDataset
    from motet.training.data.records import Record
    from motet.training.objectives.objective import RecordKind
    from motet.training.policy import HiddenPolicy
    from motet.training.recipe import Dataset

app = typer.Typer(
    help="Look at data as a model reads it, clean it, and part it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ANY_LENGTH = 1 << 30

Files = Annotated[list[str], typer.Argument(help="JSONL, JSON, CSV or Parquet files, or globs.")]
TokenizerPath = Annotated[str, typer.Option("--tokenizer", help="A folder or hub id with a tokenizer.")]
Format = Annotated[str, typer.Option("--format", help="The rows' format; auto recognises their columns.")]
Template = Annotated[str, typer.Option(help="How prompts are read: chat, plain or auto.")]


@dataclass(frozen=True, slots=True)
class Input:
    """What the files hold."""

    spec: Dataset
    kind: RecordKind

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenDataset:
        """Documents of any length."""
        from motet.training.data.dataset import load_dataset
        from motet.training.recipe import Batching

        long = Batching(max_length=ANY_LENGTH)
        return load_dataset("files", self.spec, self.kind, tokenizer=tokenizer, root=Path.cwd(), batching=long)


@app.command()
def preview(
    files: Files,
    tokenizer: TokenizerPath,
    n: Annotated[int, typer.Option("-n", min=1, help="Records to print.")] = 3,
    format: Format = "auto",
    template: Template = "auto",
) -> None:
    """Print the first records as tokens are learnt from them: what is masked is dim, or stands in ⟦…⟧."""
    from rich.console import Console

    with refusals():
        source, reader = _input(files, format, template), _tokenizer(tokenizer)
        from motet.training.data.preview import preview as show

        show({"files": source.load(reader)}, reader, n, Console(highlight=False))


@app.command()
def lengths(
    files: Files,
    tokenizer: TokenizerPath,
    max_length: Annotated[int | None, typer.Option(min=1, help="Say how many documents are longer.")] = None,
    format: Format = "auto",
    template: Template = "auto",
) -> None:
    """Print a histogram of the documents' tokens; of pairs, the longer side counts."""
    with refusals():
        dataset = _input(files, format, template).load(_tokenizer(tokenizer))
        from motet.training.data.histogram import histogram

        typer.echo(histogram(dataset.lengths, max_length))


@app.command()
def curate(
    files: Files,
    output: Annotated[Path, typer.Option(help="The new file, NAME.jsonl; the report goes to NAME.report.jsonl.")],
    duplicates: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Remove rows this near (Jaccard) to one before. Try 0.8.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that judges by its confidence.")] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Remove answers of a lower mean token probability.")
    ] = None,
    correct: Annotated[
        float | None, typer.Option(min=0.5, max=1.0, help="Replace answers where P(own better) reaches this. Try 0.8.")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the model.")] = 128,
    expert: Annotated[str | None, typer.Option(help="A tuned model, to be compared with --untuned.")] = None,
    untuned: Annotated[str | None, typer.Option(help="Its untuned partner.")] = None,
    information: Annotated[
        float | None, typer.Option(help="Remove rows that the expert explains by fewer nats more. Try 0.")
    ] = None,
    format: Format = "auto",
    template: Template = "auto",
) -> None:
    """Write the rows worth keeping to a new file, and why the others went to a report."""
    with refusals():
        named = {"model": model, "expert": expert, "untuned": untuned}
        models = {name: path for name, path in named.items() if path is not None}
        asked = {"duplicates": duplicates, "confidence": confidence, "correct": correct, "information": information}
        _check_options({*models, *(name for name, value in asked.items() if value is not None)}, output)
        from motet.training.data.curation.curate import Thresholds

        thresholds = Thresholds(**asked, answer_tokens=answer_tokens)
        _curate(_input(files, format, template), output, thresholds, models)


@app.command()
def cluster(
    files: Files,
    output: Annotated[
        Path, typer.Option(help="A new folder; each cluster is a file of it, the largest cluster-1.jsonl.")
    ],
    model: Annotated[str, typer.Option(help="The model whose hidden states behind the prompts are compared.")],
    clusters: Annotated[int, typer.Option("--clusters", "-k", min=2, help="How many, at most as a composition has.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the beginnings of k-means.")] = 0,
    format: Format = "auto",
    template: Template = "auto",
) -> None:
    """Write the rows to one file for each cluster of prompts: an adapter can be trained on each, for `adapters`."""
    with refusals():
        from motet.composers.roles import MAX_PARTS  # slow, and `--help` is instant

        if clusters > MAX_PARTS:
            refuse([f"--clusters: {clusters} are more than the {MAX_PARTS} that a composition has at most"])
        if output.exists():
            refuse([f"--output: {output} exists already; nothing is written over"])
        _cluster(_input(files, format, template), output, model, clusters, seed)


def _cluster(source: Input, output: Path, model: str, clusters: int, seed: int) -> None:
    from motet.training.data.curation.clusters import k_means, prompt_states, unlike_prompts
    from motet.training.data.curation.rows import raw_rows, write_rows
    from motet.training.data.errors import DataError
    from motet.training.data.settings import has_prompts

    reader = _tokenizer(model)
    dataset = source.load(reader)
    if source.kind != "documents" or not has_prompts(dataset.records):
        raise DataError(["files: only prompts with answers have clusters (prompt and completion, messages, …)"])
    documents = dataset.sides[""][dataset.primary]
    if (unlike := unlike_prompts(documents)) < clusters:
        raise DataError([f"--clusters: {clusters} are more than there are unlike prompts, {unlike}"])
    owners = k_means(prompt_states(_policy(model, reader), documents, _pad(reader)), clusters, seed)
    # a conversation that is read answer by answer belongs where its first prompt does
    placed = {record.source: owner for record, owner in reversed([*zip(dataset.records, owners, strict=True)])}
    rows = raw_rows(source.spec, Path.cwd())
    output.mkdir(parents=True)
    for number in range(clusters):
        file = output / f"cluster-{number + 1}.jsonl"
        own = [values for place, values in rows.items() if placed[place] == number]
        write_rows(file, own)
        typer.echo(f"{len(own)} rows in {file}")


def _check_options(given: set[str], output: Path) -> None:
    """Every combination of options that makes no sense, at once."""
    faults = {
        "--output: give at least one of --duplicates, --confidence, --correct, --information": not given
        & {"duplicates", "confidence", "correct", "information"},
        "--model: needed by --confidence and --correct": bool(given & {"confidence", "correct"})
        and "model" not in given,
        "--model: give --confidence or --correct with it": "model" in given and not given & {"confidence", "correct"},
        "--correct: --information would judge the old answers; run it on the corrected file": {"correct", "information"}
        <= given,
        "--information, --expert and --untuned go together": len(given & {"information", "expert", "untuned"})
        in (1, 2),
        f"--output: {output} exists already; nothing is written over": output.exists(),
        f"--output: {_report(output)} exists already; nothing is written over": _report(output).exists(),
        f"--output: {output.suffix or 'no suffix'} is not written; allowed: .jsonl": output.suffix != ".jsonl",
    }
    problems = [problem for problem, holds in faults.items() if holds]
    if problems:
        refuse(problems)


def _report(output: Path) -> Path:
    return output.with_suffix(".report.jsonl")


def _curate(source: Input, output: Path, thresholds: Thresholds, models: dict[str, str]) -> None:
    from motet.training.data.curation.curate import merged
    from motet.training.data.curation.rows import raw_rows, write_rows
    from motet.training.data.errors import DataError
    from motet.training.data.reading import read_records

    if models and source.kind != "documents":
        raise DataError([f"--{next(iter(models))}: models judge documents, these are {source.kind}"])
    records, problems = read_records("files", source.spec, source.kind, Path.cwd())
    if problems:
        raise DataError(problems)
    curation = merged(_curations(source, records, thresholds, models))
    rows = curation.rows(raw_rows(source.spec, Path.cwd()), records)
    write_rows(output, rows)
    write_rows(_report(output), [verdict.to_json() for verdict in curation.verdicts])
    _summarise(curation, len(records), len(rows), output)


def _curations(
    source: Input, records: list[Record], thresholds: Thresholds, models: dict[str, str]
) -> Iterator[Curation]:
    from motet.training.data.curation.curate import by_confidence, by_information, drop_duplicates
    from motet.training.data.tokens import Tokens

    if thresholds.duplicates is not None:
        yield drop_duplicates(records, thresholds.duplicates)
    if "model" in models:
        reader = _tokenizer(models["model"])
        policy, tokens = _policy(models["model"], reader), Tokens(reader)
        answer = None if thresholds.correct is None else _answer(models["model"], tokens.eos)
        yield by_confidence(policy, source.load(reader), tokens, _pad(reader), thresholds, answer)
    if thresholds.information is not None:
        reader = _tokenizer(models["expert"])
        expert, untuned = (_policy(models[name], reader) for name in ("expert", "untuned"))
        yield by_information(expert, untuned, source.load(reader), _pad(reader), thresholds.information)


def _summarise(curation: Curation, before: int, after: int, output: Path) -> None:
    counts = Counter((verdict.action, verdict.reason.split(" of ")[0]) for verdict in curation.verdicts)
    for (action, reason), count in counts.items():
        typer.echo(f"{action} {count}: {reason}")
    typer.echo(f"{after} of {before} rows in {output}; reasons in {_report(output)}")


def _input(files: list[str], format: str, template: str) -> Input:
    from pydantic import ValidationError

    from motet.training.data.errors import DataError
    from motet.training.data.reading import guess_kind
    from motet.training.recipe import Dataset

    try:
        spec = Dataset.model_validate({"files": files, "format": format, "template": template})
    except ValidationError as error:
        raise DataError([f"--{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]) from error
    return Input(spec, guess_kind(spec, Path.cwd()))


def _tokenizer(path: str) -> PreTrainedTokenizerBase:
    from motet.training.recipe import Checkpoint
    from motet.training.run.models import load_tokenizer

    return load_tokenizer(Checkpoint(path=path), Path.cwd())


def _policy(path: str, tokenizer: PreTrainedTokenizerBase) -> HiddenPolicy:
    import torch

    from motet.training.policies.model import ModelPolicy
    from motet.training.recipe import Checkpoint
    from motet.training.run.models import load_model

    return ModelPolicy(load_model(Checkpoint(path=path), Path.cwd(), tokenizer=tokenizer), torch.float32)


def _answer(path: str, end: int) -> Answer:
    """The model behind the embedded engine, in float32 as the policy is.

    Raises:
        DataError: the engine cannot run it.
    """
    from motet.engines.torch import ModelLoadError
    from motet.models.tokenizer import Tokenizer
    from motet.operator.loading import load_model
    from motet.operator.settings import EngineConfig, ModelConfig
    from motet.operator.sources import find_source
    from motet.training.data.curation.correction import engine_answer
    from motet.training.data.errors import DataError

    model = ModelConfig(path=path)
    source = find_source(model, Path.cwd())
    config = EngineConfig(device="cpu", dtype="float32")
    try:
        member = load_model("model", source, model, config, Tokenizer.load(*source.tokenizer))
    except (ModelLoadError, ValueError) as error:
        raise DataError([f"--model: {error}"]) from error
    return engine_answer(member, end)


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do: nothing reads padding."""
    pad: Any = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


@contextmanager
def refusals() -> Generator[None]:
    """What is wrong with data, models and files, in lines; exit code 1."""
    from motet.training.data.errors import DataError
    from motet.training.run.errors import RunError

    try:
        yield
    except (DataError, RunError) as error:
        refuse(error.problems)
    except OSError as error:
        refuse([str(error)])
