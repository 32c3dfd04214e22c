"""`evaluate rouge|lengths|verbs|scores|duplicates|overlap|shares`: each reads flags and calls one function.

Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.options import JsonOption, takes
from engine.collect.setting_fields import Declared, setting
from store.errors import UsageError, needs

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="data sets: JSONL, JSON list, CSV or Parquet, gzipped or not"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="more of the same")]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="also write the table as CSV")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="also write the rows behind the numbers as JSONL")
]
NameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--name", metavar="N", help="a file's name, in the order of the files; repeat it [the file's]"
    ),
]
FIELD = "field: instruction, input, output, prompt (the first two) or all"
OPTIONS = "Options"


class RougeFlags(Declared):
    predictions: tuple[Path, ...] = setting(
        ..., "rows with `prediction` or `output`; repeat it", OPTIONS, metavar="FILE...", repeat=True
    )
    references: Path = setting(..., "rows with `target`, `output` or `references`", OPTIONS, metavar="FILE")
    names: tuple[str, ...] | None = setting(
        None, "a file's name, in the order of the files; repeat it", OPTIONS, usual="the file's", flag="name",
        metavar="N", repeat=True,
    )  # fmt: skip
    against: str | None = setting(None, "also show differences to this model", OPTIONS, metavar="NAME")
    tokenizer: str = setting("auto", "default, unicode or auto (by script)", OPTIONS, metavar="T")
    processes: int | None = setting(None, "processes", OPTIONS, usual="one per core")
    csv: Path | None = setting(None, "also write the table as CSV", OPTIONS, metavar="FILE")
    out: Path | None = setting(
        None, "also write the rows behind the numbers as JSONL", OPTIONS, metavar="FILE"
    )


@takes(RougeFlags.model_fields, "asked", build=RougeFlags)
@needs("evaluate", purpose="an evaluation")
def rouge(
    more: MoreArgument = None,
    stemmer: Annotated[bool, typer.Option("--stemmer/--no-stemmer", help="use Porter's, for English")] = True,
    json: JsonOption = False,
    *,
    asked: RougeFlags,
) -> None:
    """Measure ROUGE-1, 2 and L by length of the reference."""
    from evaluators.data.rouge import RougeOptions, run_rouge
    from evaluators.tables import outputs

    told = RougeOptions(asked.names, asked.against, asked.tokenizer, stemmer, asked.processes)
    files = [*asked.predictions, *(more or [])]
    with outputs(json, csv=asked.csv, out=asked.out):
        raise typer.Exit(run_rouge(files, asked.references, told, json, asked.csv, asked.out))


def field_option(default: str) -> Any:
    return typer.Option("--field", metavar="F", help=f"{FIELD} [{default}]", show_default=False)


@needs("evaluate", purpose="an evaluation")
def lengths(
    files: FilesArgument,
    name: NameOption = None,
    field: Annotated[str, field_option("output")] = "output",
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="MODEL", help="also in tokens, as the API of this model bills them"),
    ] = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how long answers are, and the thinking before them."""
    from evaluators.data.lengths import run_lengths
    from evaluators.tables import outputs

    with outputs(json, csv=csv):
        raise typer.Exit(run_lengths(files, name, field, tokens, json, csv))


@needs("evaluate", "words", purpose="finding verbs")
def verbs(
    files: FilesArgument,
    name: NameOption = None,
    field: Annotated[str, field_option("output")] = "output",
    processes: Annotated[int | None, typer.Option("--processes", metavar="N", help="processes [1]")] = None,
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """List the most common root verbs and their nouns (English)."""
    from evaluators.data.verbs import run_verbs
    from evaluators.tables import outputs

    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_verbs(files, name, field, processes, json, csv, out))


@needs("evaluate", purpose="an evaluation")
def scores(files: FilesArgument, csv: CsvOption = None, json: JsonOption = False) -> None:
    """Show how scores are spread, by model.

    Files of `export --format scores`, or rows with `model` and `scores`.
    """
    from evaluators.data.shares import run_scores
    from evaluators.tables import outputs

    with outputs(json, csv=csv):
        raise typer.Exit(run_scores(files, json, csv))


@needs("evaluate", purpose="an evaluation")
def duplicates(
    files: FilesArgument,
    name: NameOption = None,
    field: Annotated[str, field_option("prompt")] = "prompt",
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", metavar="J", help="least share of common word trigrams [0.7]", show_default=False
        ),
    ] = 0.7,
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Find equal and nearly equal rows, within files and across them."""
    from evaluators.data.duplicates import run_duplicates
    from evaluators.tables import outputs

    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_duplicates(files, name, field, threshold, json, csv, out))


class OverlapFlags(Declared):
    train: Path = setting(..., "the training set", OPTIONS, metavar="FILE")
    test: tuple[Path, ...] = setting(
        ..., "evaluation sets; repeat it", OPTIONS, metavar="FILE...", repeat=True
    )
    n: int = setting(13, "length of a common run of words that counts", OPTIONS)
    field: str = setting("prompt", FIELD, OPTIONS, metavar="F")
    train_field: str = setting("all", "the same for the training set", OPTIONS, metavar="F")
    csv: Path | None = setting(None, "also write the table as CSV", OPTIONS, metavar="FILE")
    out: Path | None = setting(
        None, "also write the rows behind the numbers as JSONL", OPTIONS, metavar="FILE"
    )


@takes(OverlapFlags.model_fields, "asked", build=OverlapFlags)
@needs("evaluate", purpose="an evaluation")
def overlap(more: MoreArgument = None, json: JsonOption = False, *, asked: OverlapFlags) -> None:
    """Find rows of evaluation sets in a training set."""
    from evaluators.data.contamination import run_overlap
    from evaluators.tables import outputs

    tests, fields = [*asked.test, *(more or [])], (asked.field, asked.train_field)
    with outputs(json, csv=asked.csv, out=asked.out):
        raise typer.Exit(run_overlap(asked.train, tests, asked.n, fields, json, asked.csv, asked.out))


@needs("evaluate", purpose="an evaluation")
def shares(
    source: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="a data set; or give a run folder with --run")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="a run folder")] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="S", help="one stage of the run [all]")
    ] = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Count answers that are cut short, filtered, refused or empty, and languages."""
    from evaluators.data.shares import run_shares
    from evaluators.tables import outputs

    if (found := run or source) is None or (run and source):
        raise UsageError("evaluate shares needs a data set or --run DIR, one of them")
    with outputs(json, csv=csv):
        raise typer.Exit(run_shares(found, stage, json, csv))


COMMANDS = (rouge, lengths, verbs, scores, duplicates, overlap, shares)
