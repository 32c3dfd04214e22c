"""The command line in a process of its own, for tests that come in through the front door.

    ended = await generate(run, pool, p.base_url, "--limit", 3)
    async with started("generate", pool, "--run", run) as command: ... command.send(SIGINT)

Most are forked from a process that has imported the engine already (zygote.py).
Every process that ends here must leave no traceback and no warning of the interpreter behind.
What a run holds is read as its users read it: `export`, `status --json`, and SQL on the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sqlite3
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.support import zygote
from tests.support.zygote import ROOT, Forked

KEY = "sk-test-5f0c0ffee5f0c0ffee5f0c0ffee"  # what OPENAI_API_KEY holds
MODEL = "gpt-4"  # its vocabulary loads in half the time of the newer ones
FREE = (
    "--price-in",
    0,
    "--price-out",
    0,
)  # a model that is on a price list needs words about money
TROUBLE = (
    "Traceback (most recent call last)",
    "an unexpected error",
    "never retrieved",
    "never awaited",
    "destroyed but it is pending",
    "Exception ignored",
    "Fatal Python error",
    "ResourceWarning",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (negative: the signal), and all that it said."""

    code: int
    out: str
    err: str


@dataclass
class Command:
    """A process that runs. What it has said so far is in `out` and `err`."""

    process: asyncio.subprocess.Process | Forked
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    _reading: asyncio.Future[list[None]] = field(init=False)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = 150) -> Ended:
        """Waits for its end. Raises TimeoutError with what it has said."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._reading)
                code = await self.process.wait()
        except TimeoutError:
            raise TimeoutError(f"still running after {seconds} s; it said: {_text(self.err)}") from None
        return _sound(Ended(code, _text(self.out), _text(self.err)))

    def read(self) -> None:
        self._reading = asyncio.gather(_collect(self.stdout, self.out), _collect(self.stderr, self.err))

    async def end(self) -> None:
        """Leaves nothing behind, whatever the test has done."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        if self.process.stdin:
            self.process.stdin.close()
        await self._reading
        await self.process.wait()


def _text(said: bytes | bytearray) -> str:
    return said.decode(errors="backslashreplace")


async def _collect(stream: asyncio.StreamReader, into: bytearray) -> None:
    while said := await stream.read(65536):
        into.extend(said)


def _sound(ended: Ended) -> Ended:
    for sign in TROUBLE:
        assert sign not in ended.err, ended.err
    return ended


def environment(**more: str) -> dict[str, str]:
    """What a process gets: a key, no proxy, a wide terminal, nothing of the caller's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    own = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "COLUMNS": "300"}
    return kept | own | more


@contextlib.asynccontextmanager
async def started(
    *words: object, stdin: int = DEVNULL, env: Mapping[str, str] | None = None, fresh: bool = False
) -> AsyncIterator[Command]:
    """`distill WORDS...`, as a process that is killed in the end if it still runs. fresh: not forked from one
    that has imported it already, but with an interpreter and memory of its own from the start."""
    env = env or environment()
    fresh = fresh or stdin != DEVNULL or not zygote.can(env)
    command = await (_fresh(words, stdin, env) if fresh else _forked(words, env))
    command.read()
    try:
        yield command
    except BaseException as error:
        error.add_note(f"the process had said: {_text(command.err)}")
        raise
    finally:
        await command.end()


async def _fresh(words: Sequence[object], stdin: int, env: Mapping[str, str]) -> Command:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "engine", *map(str, words),
        stdin=stdin, stdout=PIPE, stderr=PIPE, env=dict(env),
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    return Command(process, process.stdout, process.stderr)


async def _forked(words: Sequence[object], env: Mapping[str, str]) -> Command:
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    files = [os.open(os.devnull, os.O_RDONLY), its_out, its_err]
    try:
        process = Forked(*zygote.fork(words, env, files))
    finally:
        for file in files:
            os.close(file)
    return Command(process, await _reader(out), await _reader(err))


async def _reader(file: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = open(file, "rb", buffering=0)  # noqa: ASYNC230, SIM115 - the loop reads it, and closes it
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def distill(*words: object, seconds: float = 150, env: Mapping[str, str] | None = None) -> Ended:
    """The same, waited for."""
    async with started(*words, env=env) as command:
        return await command.ended(seconds)


def asking(pool: object, run: Path, url: str, *flags: object, command: str = "generate") -> list[object]:
    """The words of a command that asks the provider at `url`, free of charge unless said."""
    money = () if "--price-in" in flags or "--model" in flags else FREE
    model = () if "--model" in flags else ("--model", MODEL)
    if command == "import":  # it sends nothing
        return [command, pool, "--run", run, *model, *flags]
    return [command, pool, "--run", run, "--base-url", url, *model, *money, *flags]


async def generate(run: Path, pool: object, url: str, *flags: object, seconds: float = 150) -> Ended:
    return await distill(*asking(pool, run, url, *flags), seconds=seconds)


async def status(run: Path) -> dict[str, Any]:
    ended = await distill("status", run, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = orjson.loads(ended.out)
    return found


async def stage(run: Path, name: str = "generate") -> dict[str, Any]:
    """One stage of `status --json`."""
    found: dict[str, Any] = (await status(run))["stages"][name]
    return found


async def export(run: Path, *flags: object, format: str = "alpaca") -> list[Row]:
    """The data set, as rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        ended = await distill("export", run, "--format", format, "--out", out, *flags)
        assert ended.code == 0, ended.err
        return [orjson.loads(line) for line in out.read_bytes().splitlines()]


def ledger(run: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Asks the ledger of a run, which another process may be writing."""
    reader = sqlite3.connect(f"{(run / 'ledger.db').resolve().as_uri()}?mode=ro", uri=True)
    try:
        reader.execute("PRAGMA busy_timeout = 5000")
        return reader.execute(sql, values).fetchall()
    finally:
        reader.close()


def rows(count: int, word: str = "row") -> list[Row]:
    """Rows without input, each of its own."""
    return [{"instruction": f"Tell me about {word} {n}."} for n in range(count)]


def write_pool(path: Path, pool: Iterable[Row]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in pool))
    return path


BARE = "{instruction}"


def bare(folder: Path) -> tuple[str, Path]:
    """Flags for a prompt that is the instruction alone, so that the provider's words tell whose."""
    path = folder / "bare.txt"
    path.write_text(BARE)
    return "--prompt", path


def prompt(row: Row) -> str:
    """The last message that Alpaca's templates make of a row, as published."""
    if row.get("input"):
        return (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{row['instruction']}\n\n### Response:"
    )


def belongs(answer: str, message: str) -> bool:
    """Whether these are the provider's words on this message, and on no other."""
    return answer.startswith(f"[{hashlib.sha256(message.encode()).hexdigest()[:12]}] ")


async def until(condition: Callable[[], object], seconds: float = 90, every: float = 0.01) -> None:
    """Waits for a condition to hold. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another process: nobody sets an event
            await asyncio.sleep(every)
