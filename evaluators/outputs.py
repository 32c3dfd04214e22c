"""Who may have standard output, where a command writes files, tables and JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from store.errors import UsageError
from store.files import is_plain, is_stdout


@contextmanager
def outputs(json: bool, **files: Path | None) -> Iterator[None]:
    """Checks the places of all files, by flag, before the work. Where one is standard output, the tables for
    people go to stderr. Raises UsageError where two things want standard output."""
    wanted = [f"--{name}" for name, path in files.items() if is_stdout(path)]
    if len(wanted) + json * bool(wanted) > 1:
        both = " and ".join([*wanted, *["--json"] * json])
        raise UsageError(f"{both} cannot share standard output: name a file for one of them")
    for path in files.values():
        if path is not None:
            is_plain(path)
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
