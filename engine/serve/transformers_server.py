"""`distill serve DIR`: the student's HTTP side. Understands, hands rows to the worker, puts replies together.

One event loop here, one thread that computes there; between them a queue for each request.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from engine.serve import http as chat_api
from engine.serve.http import ChatRequest, Refused, json_reply, understand
from engine.serve.model_loader import Student, load, prompt_tokens
from engine.serve.model_runner import Worker
from engine.serve.sequence import Generation, Grammars, ThinkingParts, Writing, matcher

TOO_LONG = "context_length_exceeded"
BATCH_MATTERS = (
    "the answer to a request with a seed can change with the requests that run beside it "
    "(it does not in fp32 on a CPU)"
)


class Service:
    """Answers requests about one student."""

    def __init__(self, student: Student, most_rows: int) -> None:
        self.student = student
        self._grammars = Grammars(student)
        self._worker = Worker(student, most_rows)

    def health(self) -> dict[str, Any]:
        marked = self.student.texts.seen.total()
        return {"model": self.student.name, **self._worker.counts(), "control_tokens_read_as_text": marked}

    def close(self) -> None:
        self._worker.close()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        student = self.student
        asked = understand(await request.read(), student.name)
        known = set(student.texts.seen)
        prompt = prompt_tokens(asked.messages, student.texts)
        for control in student.texts.seen.keys() - known:
            words = f"a request has the control token {control} in its text, which is read as plain text"
            print(f"{words} (shown once; /health counts them)", file=sys.stderr, flush=True)
        if not prompt:
            raise Refused(400, "the messages have no tokens", "messages", "invalid_value")
        room = student.context - len(prompt)
        if room < 1:
            words = f"the messages have {len(prompt)} tokens; the model's context has {student.context}"
            raise Refused(400, f"{words}, with room for an answer", "messages", TOO_LONG)
        grammar = await asyncio.to_thread(self._grammars.compiled, asked.response_format)
        heard: asyncio.Queue[Generation] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(row: Generation) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, row)

        most = min(room, asked.most_tokens or room)
        marks = None if grammar else self.student.texts.marks  # JSON by a schema has no room for thinking
        rows = []
        for choice in range(asked.choices):
            # with a seed the same numbers at every time, and without regard to the other choices
            draws = random.Random() if asked.seed is None else random.Random(f"{asked.seed} {choice}")
            writing = Writing(self.student.decode, asked.stop)
            given = (prompt, most, asked.temperature, asked.top_p, draws, writing)
            rows.append(Generation(*given, matcher(grammar), tell, asked.stream, marks))
        try:
            self._worker.submit(rows)
            if asked.stream:
                return await _streamed(request, asked, rows, heard, student)
            return json_reply(await _whole(rows, heard, student))
        finally:
            for row in rows:  # the client has gone, or all is said
                row.gone = True


async def _whole(
    rows: list[Generation], heard: "asyncio.Queue[Generation]", student: Student
) -> dict[str, Any]:
    """The reply, when all rows have ended."""
    for _ in rows:
        if (await heard.get()).finish == "error":
            words = "the model could not compute this answer (out of memory, or broken weights); "
            raise Refused(500, f"{words}see the server", kind="server_error")
    choices = []
    for index, row in enumerate(rows):
        said = row.said()
        message = {"role": "assistant", "content": said.answer, "refusal": None}
        if said.thought:  # apart from the answer, in the field that most servers use for it
            message["reasoning_content"] = said.thought
        choice = {"index": index, "message": message, "logprobs": None, "finish_reason": row.finish}
        choices.append(choice)
    return {**_head(student, "chat.completion"), "choices": choices, "usage": _usage(rows)}


def _head(student: Student, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{os.urandom(12).hex()}"
    return {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": student.name,
        "system_fingerprint": student.fingerprint,
    }


def _usage(rows: list[Generation]) -> dict[str, Any]:
    """The prompt counts once, whatever the number of choices; an answer counts the token that ended it, and
    its thinking."""
    prompt, written = len(rows[0].prompt), sum(row.written for row in rows)
    thought = {"reasoning_tokens": sum(row.thought for row in rows)}
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {**usage, "completion_tokens_details": thought}


async def _streamed(
    request: web.Request,
    asked: ChatRequest,
    rows: list[Generation],
    heard: "asyncio.Queue[Generation]",
    student: Student,
) -> web.StreamResponse:
    """Server-sent events: pieces of text that no stop string can take back, then the usage if asked for."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    head, sent = _head(student, "chat.completion.chunk"), [ThinkingParts("", "", False)] * len(rows)
    open_rows = set(range(len(rows)))
    for index in range(len(rows)):
        await _send(response, _piece(head, index, {"role": "assistant", "content": ""}, None))
    while open_rows:
        row = await heard.get()
        index = rows.index(row)
        if index not in open_rows:
            continue
        if row.finish == "error":
            await _send(response, Refused(500, "the model could not continue", kind="server_error").body)
            return response
        finish, said = row.finish, row.said()
        news = {  # thinking and answer only grow
            "reasoning_content": said.thought[len(sent[index].thought) :],
            "content": said.answer[len(sent[index].answer) :],
        }
        delta = {name: text for name, text in news.items() if text}
        sent[index] = said
        if delta or finish:
            await _send(response, _piece(head, index, delta, finish))
        if finish:
            open_rows.discard(index)
    if asked.usage_streamed:
        await _send(response, {**head, "choices": [], "usage": _usage(rows)})
    await response.write(b"data: [DONE]\n\n")
    return response


def _piece(head: dict[str, Any], index: int, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


async def _send(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(b"data: " + orjson.dumps(value) + b"\n\n")


def run_student(folder: Path, name: str, port: int, parallel: int, precision: str | None = None) -> None:
    """Serves until it is told to stop; prints the address on stdout when it is ready. Raises UsageError."""
    student = load(folder, name, precision)
    print(f"{student!r}, {parallel} answers at once", file=sys.stderr, flush=True)
    if not student.repeats:
        print(BATCH_MATTERS, file=sys.stderr, flush=True)
    asyncio.run(_serve(student, port, parallel))


@asynccontextmanager
async def serving(student: Student, parallel: int) -> AsyncIterator[web.Application]:
    """The application, with its worker."""
    service = Service(student, parallel)
    try:
        yield chat_api.application(student.name, service.chat, service.health, {})
    finally:
        service.close()


async def _serve(student: Student, port: int, parallel: int) -> None:
    async with serving(student, parallel) as app:
        await chat_api.listen(app, port, student.name)
