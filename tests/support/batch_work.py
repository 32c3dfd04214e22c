"""What a batch provider does with a batch: validates its file, executes its lines, bills them. No HTTP."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.provider_chat import answer, reply_body, understand

MOST_REQUESTS, MOST_BYTES = 50_000, 200 * 10**6
ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
# Lines that do not say what became of their request; of a request that has `both` a reply and an error
UNCLEAR: dict[str, dict[str, Any]] = {
    "neither": {"response": None, "error": None},
    "status_0": {"response": {"status_code": 0, "request_id": "", "body": {}}, "error": None},
    "status_none": {"response": {"request_id": "", "body": None}, "error": None},
    "status_text": {"response": {"status_code": "many", "body": ""}, "error": None},
    "both": {"error": {"code": "server_error", "message": "Oh."}},
    "both_400": {"response": {"status_code": 400}, "error": {"object": "error", "message": "No."}},
    "both_500": {"response": {"status_code": 500}, "error": {"error": {"code": 500, "message": "Oh."}}},
}


@dataclass
class Bills:
    """What was executed and charged; questions are the last message's text."""

    questions: Counter[str] = field(default_factory=Counter)
    custom_ids: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)  # custom_ids in batches that passed validation


@dataclass
class Stored:
    """A file."""

    id: str
    name: str
    raw: bytes
    purpose: str
    created: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "file", "bytes": len(self.raw), "created_at": int(self.created),
            "filename": self.name, "purpose": self.purpose, "status": "processed",
        }  # fmt: skip


@dataclass
class Made:
    """A batch of the provider's, and its secrets."""

    id: str
    input_file: str
    metadata: dict[str, str]
    number: int  # in the order of creation
    created: float = field(default_factory=time.time)
    status: str = "validating"
    errors: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    output: str | None = None
    error: str | None = None
    done: int = 0
    failed: int = 0
    cancelled: bool = False

    @property
    def is_alive(self) -> bool:
        return self.status not in TERMINAL

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.error,
            "created_at": int(self.created),
            "request_counts": {"total": len(self.lines), "completed": self.done, "failed": self.failed},
            "metadata": self.metadata or None,
        }


def problem(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def read_input(raw: bytes, models: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines, problems) of an input file."""
    problems: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    if len(raw) > MOST_BYTES:
        return [], [problem("file_too_large", "The file is over 200 MB.")]
    for number, text in enumerate(raw.splitlines(), 1):
        try:
            line = orjson.loads(text)
            lines.append(line)
            problems += _problems(line, number, models)
        except (ValueError, LookupError, TypeError, AttributeError):
            problems.append(problem("invalid_json_line", "This line is no request.", number))
    ids = Counter(line.get("custom_id") for line in lines)
    problems += [problem("duplicate_custom_id", f"{i} appears twice.") for i, n in ids.items() if n > 1]
    if len({line["body"]["model"] for line in lines if "body" in line}) > 1:
        problems.append(problem("mismatched_model", "All requests must be for one model."))
    if not lines:
        problems.append(problem("empty_file", "The file holds no request."))
    if len(lines) > MOST_REQUESTS:
        problems.append(problem("too_many_requests", "The file holds over 50,000 requests."))
    return lines, problems


def _problems(line: dict[str, Any], number: int, models: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    custom_id, model = line["custom_id"], line["body"]["model"]
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= 64):
        yield problem("invalid_custom_id", "custom_id has 1 to 64 characters.", number)
    if (line["method"], line["url"]) != ("POST", ENDPOINT):
        yield problem("invalid_url", "The URL is not the batch's endpoint.", number)
    if models and model not in models:
        yield problem("model_not_found", f"The provided model '{model}' is not supported.", number)


def tokens_of(lines: list[dict[str, Any]]) -> int:
    return sum(understand(orjson.dumps(line["body"]), 1024, False).prompt_tokens for line in lines)


def execute(line: dict[str, Any], fault: str | None, bills: Bills) -> tuple[bytes, bool] | None:
    """(line of the output, whether it is an error), billed where it is; None where it is lost."""
    ask = understand(orjson.dumps(line["body"]), 1024, False)
    status, body = 200, orjson.loads(reply_body(ask, answer(ask, 20, 0.5, False)))
    if fault in ("400", "429", "500", "404"):
        code = {"429": "rate_limit_exceeded", "404": "model_not_found"}.get(fault)
        status, body = int(fault), {"error": {"message": "No.", "type": "x", "param": None, "code": code}}
    elif fault == "filter_400":
        status, body = 400, {"error": {"message": "Filtered.", "code": "content_filter"}}
    elif fault == "filter":
        body["choices"][0]["finish_reason"] = "content_filter"
    elif fault == "empty":
        body["choices"] = []
    elif fault == "no_text":
        body["choices"][0]["message"]["content"] = ""
    elif fault == "text":
        body = "<html>not a reply</html>"
    elif fault == "no_usage":
        del body["usage"]
    if status == 200 and (fault not in UNCLEAR or fault == "both"):
        bills.questions[ask.question] += 1
        bills.custom_ids[line["custom_id"]] += 1
    if fault == "lost":
        return None
    response = {"status_code": status, "request_id": "req_1", "body": body}
    record: dict[str, Any] = {"id": "batch_req_1", "custom_id": line["custom_id"]}
    if fault in UNCLEAR:
        return _dump(record | UNCLEAR[fault] | ({"response": response} if fault == "both" else {})), True
    if fault == "error":
        return _dump(record | {"response": None, "error": {"code": "server_error", "message": "Oh."}}), True
    whole = _dump(record | {"response": response, "error": None})
    return (whole[: len(whole) * 3 // 4] if fault == "torn" else whole), status != 200


def not_run(line: dict[str, Any], why: str) -> bytes:
    """What stands in the error file for a request whose turn never came."""
    error = {"code": f"batch_{why}", "message": "This request could not be executed."}
    return _dump({"id": "batch_req_2", "custom_id": line["custom_id"], "response": None, "error": error})


def _dump(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record)


def shuffled(lines: list[bytes], seed: int) -> bytes:
    random.Random(seed).shuffle(lines)
    return b"".join(line + b"\n" for line in lines)
