"""The scripted teacher behind the OpenAI chat API, on loopback: a thin shell around `roles.reply`.

Everything that leaves it says that it is scripted: the model's name, `system_fingerprint`, a header.
"""

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from engine.provider.tokens import Tokenizer, tokenizer_for
from engine.serve import http as chat_api
from engine.serve.command import check_port
from engine.serve.http import Refused, body_of, format_of, json_reply, messages_of, most_tokens_of
from engine.serve.scripted_replies import reply
from store.errors import UsageError
from store.records import Message

MODEL = "scripted"
COUNTED_AS = "gpt-4o"  # whose vocabulary counts the tokens
HEADERS = {"x-distill-teacher": MODEL}


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """A chat request that was understood; most_tokens is None where it sets no bound."""

    messages: list[Message]
    response_format: dict[str, Any] | None
    most_tokens: int | None


def understand(raw: bytes) -> ScriptedRequest:
    """Reads a request's body. Raises Refused with what is wrong with it."""
    body = body_of(raw, MODEL)
    if body.get("stream"):
        raise Refused(400, "the scripted teacher does not stream", "stream", "unsupported_value")
    return ScriptedRequest(messages_of(body), format_of(body), most_tokens_of(body))


def completion(question: ScriptedRequest, tokenizer: Tokenizer) -> dict[str, Any]:
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
    """`latency`: seconds that an answer takes."""
    tokenizer = tokenizer_for(COUNTED_AS)

    async def chat(request: web.Request) -> web.Response:
        raw = await request.read()
        await asyncio.sleep(latency)
        return json_reply(completion(understand(raw), tokenizer))

    return chat_api.application(MODEL, chat, lambda: {"teacher": MODEL}, HEADERS)


def run_scripted(port: int, latency: float = 0.0) -> None:
    """Serves until it is told to stop; prints the address on stdout when it is ready."""
    import uvloop

    check_port(port)
    if not 0 <= latency < math.inf:
        raise UsageError(f"--latency {latency:g}: must be seconds, 0 or more")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(chat_api.listen(application(latency), port, MODEL))
