"""`evaluate rouge|lengths|verbs|scores|duplicates|overlap|shares`: each reads flags and calls one function.

Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated

import typer

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="data sets: JSONL, JSON list, CSV, Parquet, gzipped too"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="more of the same")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
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
    from evaluators.rouge.command import Told, run_rouge

    told = Told(name, against, tokenizer, stemmer, processes)
    raise typer.Exit(run_rouge([*predictions, *(more or [])], references, told, json, csv, out))


COMMANDS = (rouge,)
