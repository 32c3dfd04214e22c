"""Errors inside of a 200, replies in odd envelopes, and statuses that pass: each for one row of a run whose
other rows are answered well. REPLIES are these and those of dialects_replies.py."""

from __future__ import annotations

from typing import Any

import orjson

from tests.support.dialects import (
    COST,
    USAGE,
    Row,
    Sent,
    anthropic,
    chat,
    chunk,
    error,
    events,
    healed,
    read,
    refusal,
    reply,
    says,
    used,
)
from tests.support.dialects_replies import ODD

STREAM = "text/event-stream"
HTML = "text/html; charset=utf-8"


def provider_error(code: Any, message: str = "Provider returned error", **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "metadata": {"provider_name": "Any", **metadata}}}


def failing_choice(code: int, finish: str = "error") -> Sent:
    """OpenRouter, when what lies behind it fails in the middle of an answer."""
    return reply("Half a te", finish, choice={"error": {"code": code, "message": "Upstream error"}})


NO_ERROR = {"message": "", "type": "", "param": "", "code": None}
ERRORS_IN_A_200 = [
    healed("finish error with an error of 502", failing_choice(502), retried="server"),
    healed("finish error with an error of 429", failing_choice(429), retried="rate_limit"),
    healed("finish error and no more words", reply("Half a te", "error")),
    healed("finish network_error (GLM)", reply("Half a te", "network_error")),
    healed("finish insufficient_system_resource (DeepSeek)", reply("Half", "insufficient_system_resource")),
    healed("finish abort (SGLang)", reply("Half a te", "abort")),
    healed("error 429 (OpenRouter)", Sent(provider_error(429)), retried="rate_limit", cost=COST),
    healed("error 502 (OpenRouter)", Sent(provider_error(502)), retried="server", cost=COST),
    healed("error 503 as a string", Sent(provider_error("503")), retried="server", cost=COST),
    healed("error 524 beside choices null", Sent({**provider_error(524), "choices": None}), retried="server"),
    healed(
        "error rate_limit_exceeded", Sent(says("Slow down.", "rate_limit_exceeded")), retried="rate_limit"
    ),
    healed(
        "base_resp 1002 (MiniMax)",
        Sent({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}),
    ),
    Row("error 400", (Sent(provider_error(400, "No such field")),), "!bad_request", says="No such field"),
    Row(
        "error 403 with reasons",
        (Sent(provider_error(403, "Flagged by moderation", reasons=["violence"], flagged_input="x")),),
        "content_filter",
    ),
    read("error null beside an answer", Sent(chat("Answer.", error=None)), "Answer."),
    read("an error that says nothing (One API)", Sent(chat("Answer.", error=NO_ERROR)), "Answer."),
    read("an error of code 0", Sent(chat("Answer.", error={"code": 0, "message": "ok"})), "Answer."),
]
ANSWER = chat("Answer.")
RAW = orjson.dumps(ANSWER)
STREAMED = (chunk("Ans"), chunk("wer."), chunk(None, "stop", usage=used(10, 5)))
THOUGHT = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}]}
BROKEN_STREAM = {"error": {"code": 502, "message": "Provider disconnected"}}
ENDS_WITH_USAGE = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]}


def piece(text: str) -> dict[str, Any]:
    """One piece of a stream whose content comes in parts."""
    return {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": text}]}}]}


PAGE = "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"
ENVELOPES = [
    read("a byte order mark", Sent(b"\xef\xbb\xbf" + RAW), "Answer."),
    read("comments before the JSON (OpenRouter)", Sent(b": OPENROUTER PROCESSING\n\n" * 3 + RAW), "Answer."),
    read("blank lines before the JSON (DeepSeek)", Sent(b"\n" * 20 + RAW), "Answer."),
    Row("a stream", (Sent(events(*STREAMED), type=STREAM),), output="Answer.", cost=COST),
    read(
        "a stream of thinking and text",
        Sent(events(THOUGHT, *STREAMED), type=STREAM),
        "Answer.",
        "Hm.",
    ),
    read("a stream with comments", Sent(b": keep-alive\n\n" + events(*STREAMED), type=STREAM), "Answer."),
    read(
        "a stream without blanks, and with carriage returns",
        Sent(events(*STREAMED).replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), type=STREAM),
        "Answer.",
    ),
    Row(
        "a stream with its usage behind the end",
        (Sent(events(chunk("Answer."), chunk(None, "stop"), chat(choices=[])), type=STREAM),),
        output="Answer.",
        cost=COST,
    ),
    read("a stream of one completion", Sent(events(ANSWER), type=STREAM), "Answer."),
    read(
        "a stream that is cut by the bound",
        Sent(events(chunk("An"), chunk("", "length"))),
        "An",
        None,
        "length",
    ),
    read("NaN beside the answer", Sent(RAW[:-1] + b', "logprob": NaN}'), "Answer."),
    read("half an emoji", Sent(RAW.replace(b"Ans", rb"A\ud83d ")), "A\ufffd wer."),
    read("a line break that is not escaped", Sent(RAW.replace(b"Ans", b"An\n\ns")), "An\n\nswer."),
    read("a character 0", Sent(RAW.replace(b"Ans", rb"A\u0000")), "A\0wer."),
    read("the end of a stream behind a reply", Sent(RAW + b"\n\ndata: [DONE]\n\n"), "Answer."),
    read("pieces that are not named data", Sent(b"\n".join(map(orjson.dumps, STREAMED))), "Answer."),
    read("a line separator in a stream", Sent(events(chunk("An\u2028"), chunk("s.", "stop"))), "An\u2028s."),
    read("parts in a stream", Sent(events(piece("Ans"), piece("wer."), chunk(None, "stop"))), "Answer."),
    Row(
        "usage inside a choice of a stream (Moonshot)",
        (Sent(events(chunk("Answer."), ENDS_WITH_USAGE), type=STREAM),),
        output="Answer.",
        cost=COST,
    ),
    Row(
        "usage in x_groq of a stream (Groq)",
        (Sent(events(chunk("Answer."), chunk(None, "stop", x_groq={"usage": USAGE})), type=STREAM),),
        output="Answer.",
        cost=COST,
    ),
    healed("a stream that breaks off", Sent(events(*STREAMED[:1], done=False), type=STREAM)),
    healed("a stream with an error in it", Sent(events(STREAMED[0], BROKEN_STREAM), type=STREAM)),
    read("JSON that calls itself a page", Sent(ANSWER, type=HTML), "Answer."),
    read("status 201", Sent(ANSWER, 201), "Answer."),
    read("status 206", Sent(ANSWER, 206), "Answer."),
    healed("a page once (Cloudflare)", Sent(PAGE, type=HTML)),
]
FAULTS = [
    healed("503 with a huge body", error(503, b"<p>" + b" " * (33 << 20), HTML), retried="server"),
    healed("503 while the model loads (llama.cpp)", refusal(503, "Loading model", 503), retried="server"),
    healed(
        "529 overloaded (Anthropic)",
        anthropic(529, "overloaded_error", "Overloaded"),
        retried="server",
    ),
    healed("524 with a page (Cloudflare)", error(524, PAGE, HTML), retried="server"),
    healed("498 capacity exceeded (Groq flex)", refusal(498, "capacity exceeded", "capacity_exceeded")),
    healed(
        "429 of a full server (Mistral)",
        error(
            429,
            {
                "object": "error",
                "message": "Service tier capacity exceeded for this model.",
                "type": "service_tier_capacity_exceeded",
                "code": "3505",
            },
        ),
        retried="rate_limit",
    ),
    healed(
        "429 of an overloaded engine (Moonshot)",
        refusal(
            429, "The engine is currently overloaded, please try again later", type="engine_overloaded_error"
        ),
        retried="rate_limit",
    ),
    healed(
        "429 code 1302 (GLM)",
        error(429, {"error": {"code": "1302", "message": "您的账户已达到速率限制"}}),
        retried="rate_limit",
    ),
    healed(
        "429 Throttling (DashScope)",
        error(
            429,
            {
                "code": "Throttling.RateQuota",
                "message": "Requests rate limit exceeded, please try again later.",
                "request_id": "1",
            },
        ),
        retried="rate_limit",
    ),
    healed(
        "429 in a list without a wait (Vertex)",
        error(
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "Resource exhausted. Please try again later.",
                        "status": "RESOURCE_EXHAUSTED",
                    }
                }
            ],
        ),
        retried="rate_limit",
    ),
    healed(
        "429 of a trial key (Cohere)",
        error(429, {"message": "You are using a Trial key, which is limited to 40 API calls / minute."}),
        retried="rate_limit",
    ),
]

REPLIES = [*ODD, *ERRORS_IN_A_200, *ENVELOPES, *FAULTS]
