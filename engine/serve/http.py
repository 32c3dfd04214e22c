"""What every server of the chat API here has in common: reads requests, refuses in OpenAI's shape, listens.

On loopback only. Who answers, and with what, it does not know. (The API: platform.openai.com/docs/
api-reference/chat.)
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from engine.subprocesses import stop_signals
from store.errors import UsageError
from store.files import loads
from store.records import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_BYTES = 32 * 2**20
INVALID = "invalid_request_error"
Body = dict[str, Any]
Chat = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that is answered with an error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(raw: bytes, model: str) -> Body:
    """The request's object. Raises Refused where it is none, or asks for another model."""
    try:
        body = loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")
    if body.get("model") != model:
        words = f"the model {body.get('model')!r} does not exist here; there is: {model}"
        raise Refused(404, words, "model", "model_not_found")
    return body


def messages_of(body: Body) -> list[Message]:
    given = body.get("messages")
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


def format_of(body: Body) -> dict[str, Any] | None:
    """The response_format, where there is one."""
    given = body.get("response_format")
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


def most_tokens_of(body: Body) -> int | None:
    """The bound on the reply's tokens; None where there is none."""
    for name in ("max_completion_tokens", "max_tokens"):
        given = body.get(name)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise Refused(400, f"{name} must be a whole number of at least 1", name)
        if given is not None:
            return int(given)
    return None


def json_reply(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def application(
    model: str, chat: Chat, health: Callable[[], Body], headers: Mapping[str, str]
) -> web.Application:
    """The three doors. headers: of everything that leaves."""

    async def models(_: web.Request) -> web.Response:
        return json_reply(
            {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "distill"}]}
        )

    async def healthy(_: web.Request) -> web.Response:
        return json_reply({"status": "ok", **health()})

    async def sign(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    app = web.Application(client_max_size=MOST_BYTES, middlewares=[_in_openais_shape])
    app.on_response_prepare.append(sign)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", healthy)
    return app


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's own refusals (unknown path, method, too large a body), too."""
    try:
        return await handler(request)
    except Refused as refused:
        return json_reply(refused.body, refused.status)
    except web.HTTPException as error:
        words = f"{error.reason}: {request.method} {request.path}"
        return json_reply(Refused(error.status, words).body, error.status)


async def listen(app: web.Application, port: int, model: str) -> None:
    """Serves until it is told to stop; prints the address on stdout when it is ready. A handler whose
    client has gone is cancelled."""
    done = asyncio.Event()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        except OSError as error:
            raise UsageError(
                f"cannot listen on port {port}: {error.strerror}; give another --port"
            ) from error
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        print(f"serving {model} at {address}/v1 (model name: {model})", flush=True)
        await done.wait()
    finally:
        await runner.cleanup()
