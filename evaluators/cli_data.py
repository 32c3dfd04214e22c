"""`evaluate rouge|lengths|verbs|scores|duplicates|overlap|shares`: each reads flags and calls one function.

Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.options import JsonOption
from store.extras import needs

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="data sets: JSONL, JSON list, CSV, Parquet, gzipped too"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="more of the same")]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="the table as CSV as well")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="the rows behind the numbers as JSONL as well")
]
NameOption = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="N", help="a file's name, in the order of the files [the file's]"),
]
ProcessesOption = Annotated[
    int | None, typer.Option("--processes", metavar="N", help="[as many as there are cores]")
]


@needs("evaluate", purpose="an evaluation")
def rouge(
    predictions: Annotated[
        list[Path],
        typer.Option("--predictions", metavar="FILE...", help="a model's `prediction` or `output`"),
    ],
    references: Annotated[
        Path,
        typer.Option("--references", metavar="FILE", help="rows with `target`, `output` or `references`"),
    ],
    more: MoreArgument = None,
    name: NameOption = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME", help="differences to this model")
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="T", help="default, unicode or auto [auto: by script]", show_default=False
        ),
    ] = "auto",
    stemmer: Annotated[bool, typer.Option("--stemmer/--no-stemmer", help="Porter's, for English")] = True,
    processes: ProcessesOption = None,
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """ROUGE-1, 2 and L by length of the reference; models side by side, with intervals."""
    from evaluators.rouge.report import RougeOptions, run_rouge
    from evaluators.tables import outputs

    told = RougeOptions(name, against, tokenizer, stemmer, processes)
    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_rouge([*predictions, *(more or [])], references, told, json, csv, out))


def field_option(default: str) -> Any:
    told = f"instruction, input, output, prompt (the first two) or all [{default}]"
    return typer.Option("--field", metavar="F", help=told, show_default=False)


@needs("evaluate", purpose="an evaluation")
def lengths(
    files: FilesArgument,
    name: NameOption = None,
    field: Annotated[str, field_option("output")] = "output",
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="MODEL", help="also in tokens, as this model's API bills them"),
    ] = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """How long the answers are, and the thinking before them: quantiles and histograms on common bins."""
    from evaluators.data.lengths import run_lengths
    from evaluators.tables import outputs

    with outputs(json, csv=csv):
        raise typer.Exit(run_lengths(files, name, field, tokens, json, csv))


@needs("evaluate", "words", purpose="finding verbs")
def verbs(
    files: FilesArgument,
    name: NameOption = None,
    field: Annotated[str, field_option("output")] = "output",
    processes: Annotated[int | None, typer.Option("--processes", metavar="N", help="[1]")] = None,
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Root verbs and their nouns, the commonest of each (English)."""
    from evaluators.data.verbs import run_verbs
    from evaluators.tables import outputs

    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_verbs(files, name, field, processes, json, csv, out))


@needs("evaluate", purpose="an evaluation")
def scores(files: FilesArgument, csv: CsvOption = None, json: JsonOption = False) -> None:
    """How scores are spread, by model; files of `export --format scores`, or of `model` and `scores`."""
    from evaluators.data.scores import run_scores
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
            "--threshold", metavar="J", help="share of word trigrams in common [0.7]", show_default=False
        ),
    ] = 0.7,
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Equal and nearly equal rows, within files and across them."""
    from evaluators.data.duplicates import run_duplicates
    from evaluators.tables import outputs

    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_duplicates(files, name, field, threshold, json, csv, out))


@needs("evaluate", purpose="an evaluation")
def overlap(
    train: Annotated[Path, typer.Option("--train", metavar="FILE", help="the training set")],
    test: Annotated[list[Path], typer.Option("--test", metavar="FILE...", help="evaluation sets")],
    more: MoreArgument = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="words in a row that count [13]", show_default=False)
    ] = 13,
    field: Annotated[str, field_option("prompt")] = "prompt",
    train_field: Annotated[
        str, typer.Option("--train-field", metavar="F", help="the same [all]", show_default=False)
    ] = "all",
    csv: CsvOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Which rows of evaluation sets stand in a training set."""
    from evaluators.data.contamination import run_overlap
    from evaluators.tables import outputs

    tests = [*test, *(more or [])]
    with outputs(json, csv=csv, out=out):
        raise typer.Exit(run_overlap(train, tests, n, (field, train_field), json, csv, out))


@needs("evaluate", purpose="an evaluation")
def shares(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="a run folder or a data set")],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="S", help="of a run: one stage [all]")
    ] = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Which share is cut short, filtered, refused, empty, thought over; in which languages."""
    from evaluators.data.outcomes import run_shares
    from evaluators.tables import outputs

    with outputs(json, csv=csv):
        raise typer.Exit(run_shares(source, stage, json, csv))


COMMANDS = (rouge, lengths, verbs, scores, duplicates, overlap, shares)
