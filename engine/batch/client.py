"""Files and batches at the provider, through the openai package. Every foreign error ends here.

The package's own retries are off: what is asked again, and when, is decided by whoever calls.
The API key is cut out of all that comes back.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import httpx2
import openai
from aiolimiter import AsyncLimiter
from openai.types import Batch, FileObject

from engine.batch.files import ENDPOINT
from engine.provider.client import CONNECT_SECONDS, KEPT_BYTES, MAX_REPLY_BYTES, WORDS_KEPT, redacted
from engine.provider.errors import AskError, BrokenOff, ConnectionLost, RunStopped, ServerFault, TimedOut
from engine.provider.refusals import read_error

if TYPE_CHECKING:
    from openai._base_client import AsyncPaginator
    from openai.pagination import AsyncCursorPage

MOST_SKIPPED = 64 * 2**20  # of one line that is too long
CALLS_A_SECOND = 4
WINDOW: Literal["24h"] = "24h"
BATCH: Literal["batch"] = "batch"
PAGE_OF_FILES, PAGE_OF_BATCHES = 10_000, 100
NO_KEY = "none"  # the package wants one
RUN, NUMBER = "distill_run", "distill_batch"  # names in a batch's metadata

# What the package lets through where a reply is not what it expects
FOREIGN = (
    openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL,
    ValueError, TypeError, AttributeError, OSError,
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Remote:
    """A batch as the provider tells it. `problems`: (code, words) of a failed validation. `completed`
    and `failed` count its requests by what came of them, None where the provider does not say."""

    id: str
    status: str
    input_file: str
    output_file: str | None
    error_file: str | None
    done: int
    total: int
    problems: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, str], ...]
    completed: int | None = None
    failed: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A line without its end. `is_cut`: the file ends in it; `is_long`: this is only its start."""

    raw: bytes
    is_cut: bool = False
    is_long: bool = False


class Endless(Exception):
    """A line that does not end."""


class Splitter:
    def __init__(self) -> None:
        self._line = bytearray()
        self._skipped = 0  # of a line that is too long: only its start is kept

    def feed(self, chunk: bytes) -> Iterator[Text]:
        """The lines that end in this chunk. Raises Endless."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._grow(piece)
            yield self._take()
        self._grow(rest)

    def rest(self) -> Text | None:
        """What stands behind the last line end."""
        return self._take(is_cut=True) if self._line else None

    def _grow(self, piece: bytes) -> None:
        if self._skipped or len(self._line) + len(piece) > MAX_REPLY_BYTES:
            self._line += piece[: max(0, KEPT_BYTES - len(self._line))]
            del self._line[KEPT_BYTES:]
            self._skipped += len(piece)
        else:
            self._line += piece
        if self._skipped > MOST_SKIPPED:
            raise Endless(f"a line is longer than {(MAX_REPLY_BYTES + MOST_SKIPPED) >> 20} MiB")

    def _take(self, is_cut: bool = False) -> Text:
        text = Text(bytes(self._line), is_cut, self._skipped > 0)
        self._line.clear()
        self._skipped = 0
        return text


class BatchApi:
    """One provider: `async with BatchApi(...) as api`. Errors are AskErrors or RunStopped."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float, proxy: str | None = None) -> None:
        self.base_url, self.timeout = base_url, timeout
        self._secret = api_key
        self._pace = AsyncLimiter(CALLS_A_SECOND, 1.0)
        http = openai.DefaultAsyncHttpxClient(
            proxy=proxy, trust_env=False, timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS)
        )
        self._client = openai.AsyncOpenAI(
            api_key=api_key or NO_KEY, base_url=base_url, max_retries=0, http_client=http,
            timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS),
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def upload(self, path: Path, name: str) -> str:
        """Returns the file's id."""
        with path.open("rb") as file:
            given = (name, file, "application/jsonl")
            made = await self._asked(lambda: self._client.files.create(file=given, purpose=BATCH))
        return _expect(made, FileObject).id

    async def find_files(self, name: str, size: int) -> list[str]:
        """Ids of whole uploaded files of that name, newest first."""
        pages = self._client.files.list(purpose=BATCH, order="desc", limit=PAGE_OF_FILES)
        return [
            file.id
            async for file in self._all(pages)
            if file.filename == name and file.bytes == size and file.status != "error"
        ]

    async def delete_file(self, file: str) -> None:
        await self._asked(lambda: self._client.files.delete(file))

    async def create(self, file: str, run: str, number: int) -> Remote:
        made = await self._asked(
            lambda: self._client.batches.create(
                completion_window=WINDOW,
                endpoint=ENDPOINT,
                input_file_id=file,
                metadata={RUN: run, NUMBER: str(number)},
            )
        )
        return self._told(made)

    async def retrieve(self, batch: str) -> Remote:
        return self._told(await self._asked(lambda: self._client.batches.retrieve(batch)))

    async def cancel(self, batch: str) -> None:
        await self._asked(lambda: self._client.batches.cancel(batch))

    async def find_batches(self, run: str, number: int, file: str | None) -> list[Remote]:
        """Batches with our number in their metadata, or made of our file; all pages are read."""
        found = []
        async for batch in self._all(self._client.batches.list(limit=PAGE_OF_BATCHES)):
            remote = self._told(batch)
            mine = {(RUN, run), (NUMBER, str(number))} <= set(remote.metadata)
            if mine or (file and remote.input_file == file):
                found.append(remote)
        return found

    async def _all(self, paginator: "AsyncPaginator[T, AsyncCursorPage[T]]") -> AsyncGenerator[T]:
        """All pages. A page that is none is an error: it must not be taken for an empty list."""
        async with self._mapped():
            await self._pace.acquire()
            page, seen = await paginator, set()
            while True:
                data = getattr(page, "data", None)
                if not isinstance(data, list):
                    raise ServerFault("the reply cannot be read: it is not a list", 502)
                for item in data:
                    yield item
                last = getattr(data[-1], "id", None) if data else None
                if last is None or last in seen or not page.has_next_page():
                    return
                seen.add(last)  # a server that knows no `after` gives the same page again
                await self._pace.acquire()
                page = await page.get_next_page()

    async def lines(self, file: str) -> AsyncGenerator[Text]:
        """A file's lines as they come. Raises BrokenOff where it began and did not come to its end."""
        await self._pace.acquire()
        async with (
            self._mapped(),
            self._client.files.with_streaming_response.content(file) as response,
        ):
            splitter = Splitter()
            try:
                async for chunk in response.iter_bytes():
                    for text in splitter.feed(chunk):
                        yield self._shown(text)
            except (*FOREIGN, Endless) as error:
                late = isinstance(error, httpx2.TimeoutException)
                said = f"no more data came within {self.timeout:g} s" if late else self._said(error)
                raise BrokenOff(said or "the connection was lost") from None
            if rest := splitter.rest():
                yield self._shown(rest)

    def _shown(self, text: Text) -> Text:
        return replace(text, raw=self._redacted(text.raw)) if self._secret else text

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        async with self._mapped():
            await self._pace.acquire()
            return await call()

    @asynccontextmanager
    async def _mapped(self) -> AsyncIterator[None]:
        try:
            yield
        except FOREIGN as error:
            raise self._ours(error) from None  # its own text may hold what the server echoed

    def _ours(self, error: Exception) -> AskError | RunStopped:
        if isinstance(error, openai.APIStatusError):
            raw = self._redacted(error.response.content)
            return read_error(error.status_code, dict(error.response.headers), raw)
        words = self._said(error)
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            if isinstance(error.__cause__ or error, httpx2.ConnectTimeout):
                return ConnectionLost(f"no connection in {CONNECT_SECONDS:g} s", maybe_billed=False)
            return TimedOut("no reply in time")
        if isinstance(error, openai.APIConnectionError | httpx2.HTTPError | httpx2.StreamError | OSError):
            unsent = isinstance(error.__cause__, httpx2.ConnectError)
            return ConnectionLost(f"connection lost: {words}", maybe_billed=not unsent)
        return ServerFault(f"the reply cannot be read: {words}", 502)

    def _said(self, error: Exception) -> str:
        return self._redacted(str(error.__cause__ or error).encode(errors="replace")).decode()[:WORDS_KEPT]

    def _told(self, batch: object) -> Remote:
        batch = _expect(batch, Batch)
        counts = [getattr(batch.request_counts, name, None) for name in ("total", "completed", "failed")]
        total, completed, failed = (n if isinstance(n, int) and n >= 0 else None for n in counts)
        if not (total or completed or failed):  # where nothing is counted, nothing is told
            total = completed = failed = None
        problems = []
        for problem in (batch.errors.data if batch.errors else None) or []:
            place = f" (line {problem.line})" if problem.line else ""
            words = f"{problem.message or 'no message'}{place}".encode(errors="replace")
            problems.append((problem.code or "", self._redacted(words).decode()))
        return Remote(
            batch.id,
            str(batch.status),
            batch.input_file_id or "",
            batch.output_file_id or None,
            batch.error_file_id or None,
            (completed or 0) + (failed or 0),
            total or 0,
            tuple(problems),
            tuple((batch.metadata or {}).items()),
            completed,
            failed,
        )

    def _redacted(self, raw: bytes) -> bytes:
        return redacted(raw, (self._secret or "").encode())


def _expect(value: object, kind: type[T]) -> T:
    """A server that is none of its kind may answer 200 with a page of HTML, which comes as text."""
    if not isinstance(value, kind) or not getattr(value, "id", None):
        raise ServerFault("the reply cannot be read: it is not a " + kind.__name__.lower(), 502)
    return value
