"""A teacher on loopback whose replies to contests are those of a judge: scores, a pair of scores, [[A]].

judge = Judge()
async with scripted(judge.answer) as url: ... judge.asked, judge.keys
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from evaluators.judge.judgements import Judgement, won
from tests.support.cli import Row
from tests.support.scripted import completion

Scores = tuple[float, float] | None
TAGGED = re.compile(r"<(instruction|input|output)>\n(.*?)\n</\1>", re.DOTALL)
SHOWN = re.compile(r"### Answer (?:of Assistant )?(?:\d+|[AB])\n(.*?)\n\n### End of", re.DOTALL)


def verdict(text: str) -> str | None:
    """What it says of the answers that a message shows: longer ones are better, up to ten letters."""
    shown = SHOWN.findall(text)
    if not shown:
        return None
    lengths = [len(answer) for answer in shown]
    if "### Answer A\n" in text:
        better = "C" if lengths[0] == lengths[1] else "AB"[lengths[1] > lengths[0]]
        return f"[[{better}]]\nLook at the length."
    return " ".join(str(min(10, length)) for length in lengths) + "\nLook at the length."


class Judge:
    """Answers prompts with their own words, and contests with a score for each answer shown; keeps
    what it was asked, in order, as (system message, last message)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hold: dict[str, asyncio.Event] = {}  # words in a message -> when it is answered
        self.refuse: set[str] = set()
        self.keys: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.says: Any = None  # (message) -> reply, or None for the usual

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        system = body["messages"][0]["content"] if len(body["messages"]) > 1 else ""
        text = body["messages"][-1]["content"]
        self.asked.append((system, text))
        self.bodies.append(body)
        self.keys.append(request.headers["Idempotency-Key"])
        for words, event in self.hold.items():
            if words in system + text:
                await event.wait()
        if any(words in system + text for words in self.refuse):
            error = {"error": {"message": "This cannot be answered.", "type": "invalid_request_error"}}
            return web.json_response(error, status=400)
        if self.says and (said := self.says(text)) is not None:
            reply = said
        else:
            reply = verdict(text) or f"<{system}|{body.get('temperature')}|{text}>"
        raw = reply if isinstance(reply, bytes) else completion(reply)
        return web.Response(body=raw, content_type="application/json")

    def count(self, words: str) -> int:
        return sum(words in system + text for system, text in self.asked)


def translation(text: str) -> str | None:
    """What it says when it is asked for a translation: Chinese, another for each text."""
    parts = TAGGED.findall(text)
    if "Translate the text below" not in text:
        return None
    return "\n".join(f"<{tag}>请把这件事情告诉我：{abs(hash(part))}</{tag}>" for tag, part in parts)


# Reviews as a judge's stage and its files hold them.


def said(
    question: int, scores: Scores, a_first: bool = True, a: str = "ours", judge: str = "gpt-4", **more: Any
) -> Judgement:
    score_a, score_b = scores or (None, None)
    win = won(*scores) if scores else None
    return Judgement(str(question), a, "theirs", judge, score_a, score_b, win, a_first, **more)


def written(path: Path, rows: Sequence[object]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def review(question: object, text: str, **more: object) -> Row:
    return {"question_id": question, "text": text, **more}
