"""A pool as it is read: its rows, what is said of the bad ones, and a process that reads one from a pipe."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

import pytest

from store.pool import Pool
from store.records import BadRow, Instruction
from tests.support.cli import ROOT

READER = """
import sys
from store.pool import Pool
from store.records import Instruction
for row in Pool("-"):
    print(row.instruction if isinstance(row, Instruction) else f"bad {row.line}", flush=True)
print("end", flush=True)
"""
LONGEST_WAIT = 5.0


def pool_of(folder: Path, data: bytes, name: str = "pool.jsonl") -> list[Instruction | BadRow]:
    path = folder / name
    path.write_bytes(data)
    return list(Pool(path))


def good(rows: list[Instruction | BadRow]) -> list[Instruction]:
    return [row for row in rows if isinstance(row, Instruction)]


def bad_lines(rows: list[Instruction | BadRow]) -> list[int]:
    return [row.line for row in rows if isinstance(row, BadRow)]


def instructions(rows: list[Instruction | BadRow]) -> list[str]:
    return [row.instruction for row in good(rows)]


def complaint(folder: Path, data: bytes, name: str = "pool.jsonl") -> str:
    """What is said of a pool's only bad row."""
    (row,) = (row for row in pool_of(folder, data, name) if isinstance(row, BadRow))
    return row.reason


class Reader:
    """A process that reads a pool from its standard input and prints each row as it gets it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def line(self) -> str:
        """The next line it prints; fails when none comes."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], LONGEST_WAIT)[0]:
            pytest.fail("the row was not handed over")
        return self._process.stdout.readline().decode().strip()

    def rest(self) -> list[str]:
        self.end()
        assert self._process.stdout
        return self._process.stdout.read().decode().split("\n")
