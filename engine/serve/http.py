"""What every server of the chat API here has in common: reads requests, refuses in OpenAI's shape, listens.

On loopback only. Who answers, and with what, it does not know. What is asked for and cannot be done is
refused by its name; nothing that would change the answer is passed over in silence. (The API:
platform.openai.com/docs/api-reference/chat.)
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
        raise Refused(400, "the body is not a JSON object")
    if body.get("model") != model:
        words = f"the model {body.get('model')!r} does not exist here; there is: {model}"
        raise Refused(404, words, "model", "model_not_found")
    return body


def messages_of(body: Body) -> list[Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages must be a list with at least one message", "messages")
    messages: list[Message] = []
    for number, one in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(one, dict) or one.get("role") not in ROLES:
            raise Refused(400, f"{where} must have a role, one of {', '.join(ROLES)}", where)
        content = one.get("content")
        parts = content if isinstance(content, list) else []
        for part in parts:
            is_text = isinstance(part, dict) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                raise Refused(400, f"{where} may only have parts of the type text", f"{where}.content")
        text = "".join(part["text"] for part in parts) if isinstance(content, list) else content
        if not isinstance(text, str):
            raise Refused(400, f"{where} must have a text as content", f"{where}.content")
        messages.append({"role": one["role"], "content": text})
    return messages


def format_of(body: Body) -> dict[str, Any] | None:
    """The response_format, where there is one."""
    given = body.get("response_format")
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(given, dict) or kind not in ("text", "json_object", "json_schema"):
        raise Refused(400, "response_format must be text, json_object or json_schema", "response_format")
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


MOST_CHOICES = 128
MOST_STOPS = 16
TAKEN = {
    "model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n",
    "response_format", "stream", "stream_options",
}  # fmt: skip
# These say who asks and what becomes of the reply; they do not change it.
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Not offered; the values that ask for nothing pass.
NEUTRAL: Mapping[str, object] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0,
    "tools": [], "tool_choice": "none", "functions": [], "modalities": ["text"],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """temperature 0 is greedy. most_tokens: None where the request sets no bound. usage_streamed: whether
    the last piece of a stream tells it."""

    messages: list[Message]
    response_format: dict[str, Any] | None
    most_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    choices: int
    stream: bool
    usage_streamed: bool


def understand(raw: bytes, model: str) -> ChatRequest:
    """Reads a request's body. Raises Refused with what is wrong with it."""
    body = body_of(raw, model)
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value != NEUTRAL[name]:
                raise Refused(400, f"{name} is not offered here", name, "unsupported_parameter")
        elif name not in TAKEN | WITHOUT_EFFECT:
            raise Refused(400, f"unrecognized request argument: {name}", name, "unknown_parameter")
    options, stop = body.get("stream_options"), body.get("stop")
    if options is not None and not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", "stream_options")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise Refused(400, "stop must be a text or a list of texts, none of them empty", "stop")
    if len(stops) > MOST_STOPS:
        raise Refused(400, f"stop may have {MOST_STOPS} texts at most", "stop", "invalid_value")
    return ChatRequest(
        messages=messages_of(body),
        response_format=format_of(body),
        most_tokens=most_tokens_of(body),
        temperature=_number(body, "temperature", 0.0, 2.0),
        top_p=_number(body, "top_p", 0.0, 1.0),
        stop=tuple(stops),
        seed=_whole(body, "seed", -(2**63), 2**64 - 1),
        choices=_whole(body, "n", 1, MOST_CHOICES) or 1,
        stream=_yes(body, "stream"),
        usage_streamed=_yes(options or {}, "include_usage"),
    )


def _number(body: Body, name: str, low: float, high: float, default: float = 1.0) -> float:
    given = body.get(name)
    if given is None:
        return default
    if not isinstance(given, int | float) or isinstance(given, bool) or not low <= given <= high:
        raise Refused(400, f"{name} must be a number from {low:g} to {high:g}", name, "invalid_value")
    return float(given)


def _whole(body: Body, name: str, low: int, high: int) -> int | None:
    given = body.get(name)
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise Refused(400, f"{name} must be a whole number from {low} to {high}", name, "invalid_value")
    return given


def _yes(body: Body, name: str) -> bool:
    given = body.get(name)
    if given is not None and not isinstance(given, bool):
        raise Refused(400, f"{name} must be true or false", name, "invalid_type")
    return bool(given)
