"""A small study of two models' answers, its page on loopback, and people who use it over HTTP.

async with page(run, clock=clock) as site:           in this process
    async with person(site, "Ann") as ann:
        item = await ann.following()
        await ann.vote(item, "left", "tie", "right")
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from evaluators.annotate.command import Files, begin
from evaluators.annotate.server import ListenAddress, application, bind, hosts_of
from store.run_folder import held
from store.votes import Votes
from store.votes_schema import LOCK, Vote, read_poll
from tests.support.cli import Command, Ended, distill, started, until

TOKEN = "a-token-of-the-tests-0123456789"
ADDRESS = re.compile(rb"http://\S+/\?token=\S+")
LEAD_TOKEN = "a-token-of-the-lead-0123456789"
NAMES = ("secretmodel-a", "secretmodel-b")


@dataclass
class Clock:
    """Time that a test moves."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Page:
    """Where the page is. `url` ends without a slash."""

    url: str
    token: str
    votes: Votes | None = None


def write_study(folder: Path, count: int = 3, answers: dict[int, str] | None = None) -> list[object]:
    """Questions and two models' answers; returns the flags that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    own = answers or {}

    def write(name: str, row: Callable[[int], dict[str, Any]]) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"id": f"q{n}"} | row(n)) + b"\n" for n in range(count)))
        return path

    questions = write("questions", lambda n: {"instruction": f"Question {n}?"})
    a = write(NAMES[0], lambda n: {"text": own.get(n, f"An answer by the one to {n}.")})
    b = write(NAMES[1], lambda n: {"text": f"An answer by the other to {n}."})
    return ["--questions", questions, "--answers", a, "--against", b]


@contextlib.contextmanager
def opened(
    run: Path, count: int = 3, wanted: int = 2, seed: int | None = None, **more: Any
) -> Iterator[Votes]:
    """The votes of a run on a small study."""
    answers = more.pop("answers", None)
    questions, a, b = map(str, write_study(run.parent / f"{run.name}-files", count, answers)[1::2])
    with held(run, LOCK):
        votes = Votes(run, more.pop("clock", time))
        begin(votes, Files(questions, a, b, (), wanted, seed))
        try:
            yield votes
        finally:
            votes.close()


@contextlib.asynccontextmanager
async def page(run: Path, **study: Any) -> AsyncIterator[Page]:
    """The page of a small study, served by this process."""
    with opened(run, **study) as votes:
        address = ListenAddress("127.0.0.1", 0)
        bound = bind(address)
        port = bound.getsockname()[1]
        app = application(votes, TOKEN, hosts_of(address, port), port, LEAD_TOKEN)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, bound).start()
            yield Page(f"http://127.0.0.1:{port}", TOKEN, votes)
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def served(run: Path, *flags: object) -> AsyncIterator[tuple[Command, Page]]:
    """`distill annotate` as a process."""
    port = () if "--port" in flags else ("--port", 0)
    async with started("annotate", "--run", run, *port, *flags) as command:
        await until(lambda: ADDRESS.search(command.out) or command.process.returncode is not None)
        found = ADDRESS.search(command.out)
        assert found, command.err
        url, _, token = found[0].decode().partition("/?token=")
        yield command, Page(url, token)


@dataclass
class Person:
    """Somebody with a browser of their own, without scripts."""

    site: Page
    session: aiohttp.ClientSession

    async def get(self, path: str, **options: Any) -> tuple[int, str, str]:
        """Status, text, and the path where it ended."""
        async with self.session.get(self.site.url + path, **options) as response:
            return response.status, await response.text(), response.url.path

    async def post(self, path: str, form: dict[str, str], **headers: str) -> tuple[int, str, str]:
        headers = {"Origin": self.site.url} | headers
        async with self.session.post(self.site.url + path, data=form, headers=headers) as response:
            return response.status, await response.text(), response.url.path

    async def join(self, name: str) -> None:
        await self.get(f"/?token={self.site.token}")
        status, _, _ = await self.post("/name", {"name": name, "known": "yes"})
        assert status == 200

    async def following(self) -> int | None:
        """The pair that is to be judged next; None at the end."""
        status, _, path = await self.get("/next")
        assert status == 200
        return int(path.rpartition("/")[2]) if path.startswith("/item/") else None

    async def vote(self, item: int, *places: str, note: str = "") -> str:
        """Where it led."""
        form = dict(zip(("helpful", "honest", "harmless"), places, strict=True)) | {"note": note}
        status, text, path = await self.post(f"/item/{item}", form)
        assert status == 200, text
        return path


@contextlib.asynccontextmanager
async def person(site: Page, name: str = "") -> AsyncIterator[Person]:
    """Somebody who has come in under a name; without one, a stranger at the door."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        found = Person(site, session)
        if name:
            await found.join(name)
        yield found


def votes_in(run: Path) -> tuple[Vote, ...]:
    """What is on the disk, read as another program reads it."""
    return read_poll(run).votes


async def human(run: Path, *flags: object) -> Ended:
    return await distill("evaluate", "human", "--run", run, *flags)
