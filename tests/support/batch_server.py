"""A Files and Batch server on loopback, as OpenAI's: a real HTTP server for tests.

    async with BatchServer(work=0.1).running() as s:
        s.lose["create"] = ["after"]            the batch is made, the answer never comes
        s.hold("content", "middle")             stands still there; `await s.reached()`, `s.release()`
        s.faults["row 3"] = ["500", "400"]      by words of the question, one for each time it is asked

Steps: upload, files, create, retrieve, list, content, cancel, delete. It knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import BodyPartReader, web

from tests.support.batch_files import Serve, send
from tests.support.batch_work import (
    ENDPOINT,
    Bills,
    Made,
    Stored,
    execute,
    not_run,
    problem,
    read_input,
    shuffled,
    tokens_of,
)
from tests.support.provider_replies import drop, json_response

CHUNK = 4096


@dataclass
class BatchServer:
    """Times in seconds. `expire`, `cut`: numbers of batches (from 0) that end half done."""

    validation: float = 0.05
    work: float = 0.1
    lag: float = 0.0  # lists do not show what is younger
    models: tuple[str, ...] = ()  # none: all
    enqueued_limit: int | None = None  # tokens
    tell_limit: bool = True
    expire: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    key: str | None = None
    page: int = 100
    frozen: bool = False  # batches stay in_progress
    serve: Serve | None = None  # hands out files in its own way
    told: dict[str, Any] = field(default_factory=dict)  # of every batch, over what is true
    lose: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Stored] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    bills: Bills = field(default_factory=Bills)
    calls: Counter[str] = field(default_factory=Counter)
    enqueued: int = 0
    most_enqueued: int = 0
    base_url: str = ""
    _held: tuple[str, str] | None = None
    _numbers: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BatchServer]:
        self._reached, self._released = asyncio.Event(), asyncio.Event()
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await runner.cleanup()

    # For tests

    def hold(self, step: str, where: str = "after") -> None:
        """Stands still at the next such step: `before` or `after` its work, or in the `middle`."""
        self._held = (step, where)
        self._reached.clear()
        self._released.clear()

    async def reached(self, seconds: float = 90) -> None:
        async with asyncio.timeout(seconds):
            await self._reached.wait()

    def release(self) -> None:
        self._held = None
        self._released.set()

    @property
    def uploads(self) -> list[Stored]:
        return [file for file in self.files.values() if file.purpose == "batch"]

    def usable(self) -> list[Made]:
        """Batches that passed validation."""
        return [made for made in self.made.values() if made.status != "failed"]

    # The doors

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**30, middlewares=[self._door])
        for method, path, step in (
            ("POST", "/v1/files", "upload"),
            ("GET", "/v1/files", "files"),
            ("GET", "/v1/files/{id}/content", "content"),
            ("DELETE", "/v1/files/{id}", "delete"),
            ("POST", "/v1/batches", "create"),
            ("GET", "/v1/batches", "list"),
            ("GET", "/v1/batches/{id}", "retrieve"),
            ("POST", "/v1/batches/{id}/cancel", "cancel"),
        ):
            app.router.add_route(method, path, getattr(self, f"_{step}"), name=step)
        return app

    @web.middleware
    async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        step = request.match_info.route.name or ""
        self.calls[step] += 1
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return refuse(401, f"Incorrect API key: {request.headers.get('Authorization')}")
        how = self.lose[step].pop(0) if self.lose[step] and self.lose[step][0] != "tear" else ""
        if how == "before":
            return drop(request)
        if how.isdigit():
            return refuse(int(how), "Not now.")
        await self._stand(step, "before")
        response: web.StreamResponse = await handler(request)
        await self._stand(step, "after")
        return drop(request) if how == "after" else response

    async def _stand(self, step: str, where: str) -> None:
        if self._held == (step, where):
            self._reached.set()
            await self._released.wait()

    # Files

    def _store(self, name: str, raw: bytes, purpose: str) -> Stored:
        self._numbers += 1
        file = Stored(f"file-{self._numbers}", name, raw, purpose)
        self.files[file.id] = file
        return file

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        name, raw, purpose = "", b"", ""
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "file":
                name, raw = part.filename or "", bytes(await part.read())
            elif part.name == "purpose":
                purpose = (await part.read()).decode()
        if purpose != "batch" or not name.endswith(".jsonl"):
            return refuse(400, f"a {purpose} file {name!r} is none for a batch")
        return json_response(self._store(name, raw, purpose).as_json())

    async def _files(self, request: web.Request) -> web.StreamResponse:
        purpose = request.query.get("purpose")
        files = [f for f in self.files.values() if purpose in (None, f.purpose)]
        return self._page(request, list(reversed(files)))

    async def _content(self, request: web.Request) -> web.StreamResponse:
        file = self.files.get(request.match_info["id"])
        if file is None:
            return refuse(404, "No such file.")
        if self.serve:
            return await send(request, self.serve(file, self.calls["content"]))
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = len(file.raw)
        await response.prepare(request)
        torn = bool(self.lose["content"]) and self.lose["content"].pop(0) == "tear"
        for start in range(0, len(file.raw), CHUNK):
            if start >= len(file.raw) // 2:
                await self._stand("content", "middle")
                if torn:
                    return drop(request)
            await response.write(file.raw[start : start + CHUNK])
        await response.write_eof()
        return response

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        file = self.files.pop(request.match_info["id"], None)
        if file is None:
            return refuse(404, "No such file.")
        return json_response({"id": file.id, "object": "file", "deleted": True})

    def _page(self, request: web.Request, found: list[Any]) -> web.Response:
        """A page of a list, newest first, without what the list does not know yet."""
        found = [f for f in found if time.time() - f.created >= self.lag]
        ids = [f.id for f in found]
        after = request.query.get("after")
        start = ids.index(after) + 1 if after in ids else 0
        size = min(self.page, int(request.query.get("limit", 20)))
        data = [f.as_json() for f in found[start : start + size]]
        return json_response({"object": "list", "data": data, "has_more": start + size < len(found)})

    # Batches

    async def _create(self, request: web.Request) -> web.StreamResponse:
        given = orjson.loads(await request.read())
        metadata = given.get("metadata") or {}
        if given.get("completion_window") != "24h" or given.get("endpoint") != ENDPOINT:
            return refuse(400, "Wrong window or endpoint.")
        if given.get("input_file_id") not in self.files:
            return refuse(400, "Cannot find the input file.")
        if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            return refuse(400, "Too much metadata.")
        made = Made(f"batch_{len(self.made)}", given["input_file_id"], metadata, len(self.made))
        self.made[made.id] = made
        task = asyncio.create_task(self._live(made))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return json_response(made.as_json())

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        made = self.made.get(request.match_info["id"])
        return json_response(made.as_json() | self.told) if made else refuse(404, "No such batch.")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return self._page(request, list(reversed(self.made.values())))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        made = self.made[request.match_info["id"]]
        made.cancelled = True
        if made.is_alive:
            made.status = "cancelling"
        return json_response(made.as_json())

    async def _live(self, made: Made) -> None:
        """validating -> in_progress -> finalizing -> its end."""
        await asyncio.sleep(self.validation)
        self._validate(made)
        if made.status == "failed":
            return
        self.enqueued += made.tokens
        self.most_enqueued = max(self.most_enqueued, self.enqueued)
        try:
            await asyncio.sleep(self.work)
            while self.frozen and not made.cancelled:  # noqa: ASYNC110 - tests set it like a value
                await asyncio.sleep(0.01)
            self._execute(made)
            made.status = "finalizing"
            await asyncio.sleep(0.02)
            made.status = self._end(made)
        finally:
            self.enqueued -= made.tokens

    def _validate(self, made: Made) -> None:
        made.lines, made.errors = read_input(self.files[made.input_file].raw, self.models)
        if not made.errors:
            made.tokens = tokens_of(made.lines)
            if self.enqueued_limit is not None and self.enqueued + made.tokens > self.enqueued_limit:
                limit = f" Limit: {self.enqueued_limit:,} enqueued tokens." if self.tell_limit else ""
                words = f"Enqueued token limit reached for gpt-4 in organization org-1.{limit}"
                made.errors = [problem("token_limit_exceeded", words)]
        made.status = "failed" if made.errors else "in_progress"
        if made.status == "failed":
            made.lines = []
        if made.cancelled and made.is_alive:
            made.status = "cancelling"
        self.bills.accepted.update(line["custom_id"] for line in made.lines)

    def _end(self, made: Made) -> str:
        return "expired" if made.number in self.expire else "cancelled" if self._is_cut(made) else "completed"

    def _is_cut(self, made: Made) -> bool:
        return made.cancelled or made.number in self.cut

    def _execute(self, made: Made) -> None:
        halves = made.number in self.expire or self._is_cut(made)
        count = len(made.lines) // 2 if halves else len(made.lines)
        good: list[bytes] = []
        bad: list[bytes] = []
        for line in made.lines[:count]:
            if (done := execute(line, self._fault(line), self.bills)) is not None:
                (bad if done[1] else good).append(done[0])
        made.done, made.failed = len(good), len(bad)
        bad += [not_run(line, self._end(made)) for line in made.lines[count:]]
        made.output = self._results("output", good, made) if good else None
        made.error = self._results("error", bad, made) if bad else None

    def _results(self, kind: str, lines: list[bytes], made: Made) -> str:
        return self._store(f"{made.id}_{kind}.jsonl", shuffled(lines, made.number), "batch_output").id

    def _fault(self, line: dict[str, Any]) -> str | None:
        question = line["body"]["messages"][-1]["content"]
        for words, faults in self.faults.items():
            if words in question and faults:
                with suppress(IndexError):
                    return faults.pop(0)
        return None


def refuse(status: int, words: str) -> web.Response:
    error = {"message": words, "type": "invalid_request_error", "param": None, "code": None}
    return json_response({"error": error}, status)
