"""The scripted teacher behind the OpenAI chat API, on loopback: a thin shell around `roles.reply`.

Everything that leaves it says that it is scripted: the model's name, `system_fingerprint`, a header.
"""

import asyncio
import hashlib
import signal
import time
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from engine.keys import Message
from engine.replies import loads
from engine.scripted.roles import reply
from engine.tokens import Tokenizer, tokenizer_for
from store.errors import UsageError

MODEL = "scripted"
COUNTED_AS = "gpt-4o"  # whose vocabulary counts the tokens
HEADERS = {"x-distill-teacher": MODEL}
ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_BYTES = 32 * 2**20
INVALID = "invalid_request_error"


class Refused(Exception):
    """A request that is answered with an error in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": INVALID, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Question:
    """A chat request that was understood; most_tokens is None where it sets no bound."""

    messages: list[Message]
    response_format: dict[str, Any] | None
    most_tokens: int | None


def understand(raw: bytes) -> Question:
    """Reads a request's body. Raises Refused with what is wrong with it."""
    try:
        body = loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")
    if body.get("model") != MODEL:
        words = f"the model {body.get('model')!r} does not exist here; there is: {MODEL}"
        raise Refused(404, words, "model", "model_not_found")
    if body.get("stream"):
        raise Refused(400, "the scripted teacher does not stream", "stream", "unsupported_value")
    return Question(_messages(body.get("messages")), _format(body.get("response_format")), _most(body))


def _messages(given: object) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages must be a list with at least one message", "messages")
    return [_message(one, f"messages[{number}]") for number, one in enumerate(given)]


def _message(given: object, where: str) -> Message:
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise Refused(400, f"{where} must have a role, one of {', '.join(ROLES)}", where)
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_text(part, where) for part in content)
    if not isinstance(content, str):
        raise Refused(400, f"{where} must have a text as content", f"{where}.content")
    return {"role": given["role"], "content": content}


def _text(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Refused(400, f"{where} may only have parts of the type text", f"{where}.content")


def _format(given: object) -> dict[str, Any] | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(given, dict) or kind not in ("text", "json_object", "json_schema"):
        raise Refused(400, "response_format wants text, json_object or json_schema", "response_format")
    described = given.get("json_schema")
    if kind == "json_schema" and not (
        isinstance(described, dict) and isinstance(described.get("schema"), dict)
    ):
        raise Refused(400, "response_format has no json_schema.schema", "response_format")
    return given


def _most(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        given = body.get(name)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise Refused(400, f"{name} must be a whole number of at least 1", name)
        if given is not None:
            return int(given)
    return None


def completion(question: Question, tokenizer: Tokenizer) -> dict[str, Any]:
    """The body of the reply to a question."""
    text = reply(question.messages, question.response_format)
    tokens = tokenizer.encoding.encode_ordinary(text)
    cut = question.most_tokens is not None and len(tokens) > question.most_tokens
    if cut:
        tokens = tokens[: question.most_tokens]
        text = tokenizer.encoding.decode(tokens, errors="ignore")
    prompt = tokenizer.count_messages(question.messages)
    return {
        "id": f"chatcmpl-scripted-{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "system_fingerprint": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len(tokens),
            "total_tokens": prompt + len(tokens),
        },
    }


def application(latency: float) -> web.Application:
    """The three doors. `latency`: seconds that an answer takes."""
    tokenizer = tokenizer_for(COUNTED_AS)

    async def chat(request: web.Request) -> web.Response:
        raw = await request.read()
        await asyncio.sleep(latency)
        try:
            return _json(completion(understand(raw), tokenizer))
        except Refused as refused:
            return _json(refused.body, refused.status)

    async def models(_: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "distill"}]})

    async def health(_: web.Request) -> web.Response:
        return _json({"status": "ok", "teacher": MODEL})

    app = web.Application(client_max_size=MOST_BYTES, middlewares=[_in_openais_shape])
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    return app


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's own refusals (unknown path, method, too large a body), too."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json(
            Refused(error.status, f"{error.reason}: {request.method} {request.path}").body, error.status
        )


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, headers=HEADERS, content_type="application/json"
    )


def run_scripted(port: int, latency: float = 0.0) -> None:
    """Serves until SIGINT or SIGTERM; prints the address on stdout when it is ready."""
    import uvloop

    if not (0 <= port <= 65535 and latency >= 0):
        raise UsageError("--port wants 0 to 65535, --latency seconds from 0")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(port, latency))


async def _serve(port: int, latency: float) -> None:
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    runner = web.AppRunner(application(latency), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        except OSError as error:
            raise UsageError(
                f"cannot listen on port {port}: {error.strerror}; give another --port"
            ) from error
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        print(f"serving {MODEL} at {address}/v1 (model name: {MODEL})", flush=True)
        await done.wait()
    finally:
        await runner.cleanup()
