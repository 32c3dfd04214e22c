"""The scripted teacher: replies by simple rules, behind the OpenAI chat API on loopback. For tests and demos.

`reply` is pure: the same messages always get the same text. The task is recognised by marks in our prompts
and in FastChat's reviewer prompts; anything else gets a plain answer. Translation is into Chinese only,
word by word from a small glossary, else by sound; it is labelled and not meant to be read. Ratings depend
on length, on words of the question, on repetition and on broken text. They know nothing about truth.

Everything that leaves it says that it is scripted: the model's name, `system_fingerprint`, a header.
"""

import asyncio
import hashlib
import math
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import web

from engine.provider.tokens import Tokenizer, tokenizer_for
from engine.serve import http as chat_api
from engine.serve.command import check_port
from engine.serve.http import Refused, body_of, format_of, json_reply, messages_of, most_tokens_of
from engine.tasks.language_check import UNCHANGED
from engine.tasks.languages import Language, find_language
from store.errors import UsageError
from store.records import Message

CHINESE_LABEL = "（脚本译文）"

# What is left is spelt by its consonants, as foreign names are.
SOUNDS = dict(
    zip("bcdfghjklmnpqrstvwxyz", "布克德弗格赫杰卡尔姆恩普奇罗斯特夫沃西伊兹", strict=True)
)  # fmt: skip
NO_SOUND = "某"


_PIECE = re.compile(
    rf"(?P<kept>{UNCHANGED.pattern})|(?P<word>[A-Za-zÀ-ɏ]+(?:['’-][A-Za-zÀ-ɏ]+)*)", UNCHANGED.flags
)
_SPACE = re.compile(r"(?<=[\u4e00-\u9fff]) +(?=[\u4e00-\u9fff])")
_SENTENCE_ENDS = ".!?:…\"'“‘(-"


def translate(text: str, to: Language) -> str:
    """The text word by word; unchanged, and saying so, into a language that has no glossary."""
    if to.code != "zh":
        return f"(scripted: no glossary for {to.name}) {text}"
    return CHINESE_LABEL + _SPACE.sub("", _PIECE.sub(_piece, text))


def _piece(match: re.Match[str]) -> str:
    word = match["word"]
    if word is None:
        return match[0]
    known = _glossary().get(word.lower())
    if known is not None:
        return known
    start, before = match.start(), match.string[max(0, match.start() - 2) : match.start()].strip()
    if word[0].isupper() and start > 0 and before and before[-1] not in _SENTENCE_ENDS:
        return word  # a capital inside a sentence makes a name
    return "".join(SOUNDS.get(letter, "") for letter in word.lower()) or NO_SOUND


@cache
def _glossary() -> dict[str, str]:
    """Words that instructions are made of. An empty meaning: a word that Chinese does without."""
    lines = (files("engine.serve") / "glossary.txt").read_text(encoding="utf-8")
    entries = (entry.split("=") for entry in lines.replace("\n", "|").strip("|").split("|"))
    return {word: meaning for words, meaning in entries for word in words.split(",")}


LONG_ENOUGH = 80  # words; more bring no more points
LEAST, MOST = 1, 10
LENGTH_POINTS, OVERLAP_POINTS, VARIETY_POINTS, BROKEN_POINTS = 4.0, 2.0, 3.0, 2.0
ENOUGH_OVERLAP = 0.5  # of the question's words
RUN = 3  # words that come again together are a repetition
SHORT_WORD = 3  # letters; shorter words say little of what is asked

# A Chinese or Japanese character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+?(?=[\u3040-\u30ff\u3400-\u9fff]|[\W_]|\Z)")
_ENDED = re.compile(r"""[.!?…。！？:;)\]}"'”’」`>|0-9]\s*\Z""")


@dataclass(frozen=True, slots=True)
class Rating:
    """score: a whole number, 1-10. why: in words, marked as scripted."""

    score: int
    why: str


def rate(question: str, answer: str) -> Rating:
    """The score of an answer to a question, with its reasons."""
    words = words_of(answer)
    if not words:
        return Rating(LEAST, "(scripted) There is no answer.")
    # the share of the question's words that come in the answer
    asked = {word for word in words_of(question) if len(word) > SHORT_WORD or ord(word[0]) > 0x3000}
    overlap = len(asked & set(words)) / len(asked) if asked else 0.0
    # the share of the runs of words that are not repetitions
    runs = [tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))]
    variety = len(set(runs)) / len(runs)
    length = min(1.0, math.log1p(len(words)) / math.log1p(LONG_ENOUGH))
    flaws = []
    if "\ufffd" in answer or any(unicodedata.category(c) == "Cc" for c in answer if c not in "\n\t\r"):
        flaws.append("broken characters")
    if answer.count("```") % 2:
        flaws.append("an open code block")
    elif not _ENDED.search(answer) and len(words) > LONG_ENOUGH:
        flaws.append("no end")
    points = (
        LEAST
        + LENGTH_POINTS * length
        + OVERLAP_POINTS * min(1.0, overlap / ENOUGH_OVERLAP)
        + VARIETY_POINTS * variety**2 * length
        - BROKEN_POINTS * len(flaws)
    )
    score = max(LEAST, min(MOST, math.floor(points + 0.5)))
    facts = [f"{len(words)} words", f"{overlap:.0%} of the question's words", f"{1 - variety:.0%} repeated"]
    return Rating(score, f"(scripted) {', '.join([*facts, *flaws])}.")


def words_of(text: str) -> list[str]:
    """The words in lower case."""
    return _WORD.findall(text.lower())


# How answers are shown: what opens and what closes the one at a place.
SHOWN = (
    ("### Answer {}", "### End of answer {}"),
    ("### Answer of Assistant {}", "### End of the answer of Assistant {}"),
    ("### 回答{}", "### 回答{}到此结束"),
    ("### 助手{}的回答", "### 助手{}的回答到此结束"),
    ("[The Start of Assistant {}'s Answer]", "[The End of Assistant {}'s Answer]"),
)
QUESTION = re.compile(r"\A(?:### (?:Instruction|Question|指令|问题)|\[Question\])\n")
SCORES_LAST = re.compile(r"End with a line that holds only|最后一行只写")
TRANSLATE = re.compile(r"\ATranslate the text below into ([^.\n]+?)\. It stands between tags")
TAGGED = re.compile(r"^<((instruction|input|output)(?:-\d+)?)>\n(.*?)\n</\1>$", re.DOTALL | re.MULTILINE)
ALPACA = re.compile(r"### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*\Z", re.DOTALL)

SENTENCES = (
    "It comes down to {0}.",
    "Begin with {0}, then look at {1}.",
    "What matters most here is {1}, and after it {2}.",
    "In short: {0}, {1}, {2}.",
)
SENTENCES_ZH = (
    "要点是{0}。",
    "先看{0}，再看{1}。",
    "这里最重要的是{1}，其次是{2}。",
    "总之：{0}、{1}、{2}。",
)
KEYWORD = 4  # letters, from which a word is worth repeating

Answers = Sequence[tuple[str, str]]  # place, text


def reply(messages: Sequence[Message], response_format: Mapping[str, Any] | None = None) -> str:
    """The text of the reply to a chat; JSON where the format asks for it."""
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    wanted = response_format or {}
    schema: Mapping[str, Any] | None = None  # for text; an empty one for `json_object`
    if wanted.get("type") == "json_schema":
        schema = wanted["json_schema"]["schema"]
    elif wanted.get("type") == "json_object":
        schema = {}
    found = TRANSLATE.match(asked)
    if found is not None:  # the tagged parts, each translated, in their tags again
        try:
            language = find_language(found[1])
        except UsageError:
            return f"(scripted: no language {found[1]})"
        parts = [(tag, part, translate(text, language)) for tag, part, text in TAGGED.findall(asked)]
        if schema is not None:
            return _json({part: text for _, part, text in parts})
        return "\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, _, text in parts)
    question, answers = _contest(asked)
    if answers:
        return _verdict(asked, question, answers, schema)
    plain = _plain(asked)
    return plain if schema is None else _json(_filled(schema, plain))


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _contest(asked: str) -> tuple[str, Answers]:
    """The question, and the answers shown to it; none where this is no such prompt."""
    if not QUESTION.match(asked):
        return asked, []
    for opening, closing in SHOWN:
        start, end = (re.escape(mark).split(r"\{\}") for mark in (opening, closing))
        pattern = rf"^{start[0]}([A-Z]|\d+){start[1]}\n(.*?)\n+{end[0]}\1{end[1]}$"
        found = list(re.finditer(pattern, asked, re.DOTALL | re.MULTILINE))
        if found:
            question = QUESTION.sub("", asked[: found[0].start()]).strip()
            return question, [(one[1], one[2]) for one in found]
    return asked, []


def _verdict(asked: str, question: str, answers: Answers, schema: Mapping[str, Any] | None) -> str:
    """Scores in the order shown, or the better one of A and B, with the reasons."""
    ratings = [rate(question, text) for _, text in answers]
    why = "\n".join(f"{place}: {one.why}" for (place, _), one in zip(answers, ratings, strict=True))
    scores = [one.score for one in ratings]
    better = "C" if scores[0] == scores[-1] else "A" if scores[0] > scores[-1] else "B"
    if schema is not None:  # `score_1`, …, `preference` and texts, in the order of the schema
        values: dict[str, Any] = {f"score_{place}": score for place, score in enumerate(scores, 1)}
        values["preference"] = better
        names = schema.get("properties") or {**dict.fromkeys(values), "reasons": None}
        return _json({name: values.get(name, why) for name in names})
    first = f"[[{better}]]" if [place for place, _ in answers] == ["A", "B"] else " ".join(map(str, scores))
    return f"{why}\n\n{first}" if SCORES_LAST.search(asked) else f"{first}\n{why}"


def _plain(asked: str) -> str:
    """A short answer out of three of the longest words of the instruction (in Chinese: stretches between
    signs), in their order; how many sentences, its hash decides."""
    template = ALPACA.search(asked)
    instruction = " ".join(part for part in template.groups() if part) if template else asked
    chinese = bool(re.search(r"[\u4e00-\u9fff]", instruction))
    found = re.findall(r"[\u4e00-\u9fff]{2,8}", instruction) if chinese else words_of(instruction)
    found = list(dict.fromkeys(word for word in found if chinese or len(word) >= KEYWORD))
    longest = sorted(found, key=len, reverse=True)[:3]
    words = [word for word in found if word in longest]
    words += ["此事" if chinese else "the matter"] * (3 - len(words))
    count = 1 + hashlib.sha256(instruction.encode()).digest()[0] % len(SENTENCES)
    sentences = [s.format(*words) for s in (SENTENCES_ZH if chinese else SENTENCES)[:count]]
    return "（脚本）" + "".join(sentences) if chinese else "(scripted) " + " ".join(sentences)


def _filled(schema: Mapping[str, Any], text: str) -> Any:
    """Some value of a schema, with the text where one is wanted."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties: Mapping[str, Any] = schema.get("properties") or {"answer": {"type": "string"}}
        return {name: _filled(one, text) for name, one in properties.items()}
    return {"string": text, "integer": 1, "number": 1, "boolean": True, "array": []}.get(kind)


MODEL = "scripted"
COUNTED_AS = "gpt-4o"  # whose vocabulary counts the tokens
HEADERS = {"x-distill-teacher": MODEL}


def completion(raw: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    """The body of the reply to a request's body. Raises Refused with what is wrong with that."""
    body = body_of(raw, MODEL)
    if body.get("stream"):
        raise Refused(400, "the scripted teacher does not stream", "stream", "unsupported_value")
    messages, response_format, most = messages_of(body), format_of(body), most_tokens_of(body)
    text = reply(messages, response_format)
    tokens = tokenizer.encoding.encode_ordinary(text)
    cut = most is not None and len(tokens) > most
    if cut:
        tokens = tokens[:most]
        text = tokenizer.encoding.decode(tokens, errors="ignore")
    prompt = tokenizer.count_messages(messages)
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
        return json_reply(completion(raw, tokenizer))

    return chat_api.application(MODEL, chat, lambda: {"teacher": MODEL}, HEADERS)


def run_scripted(port: int, latency: float = 0.0) -> None:
    """Serves until it is told to stop; prints the address on stdout when it is ready."""
    import uvloop

    check_port(port)
    if not 0 <= latency < math.inf:
        raise UsageError(f"--latency {latency:g}: must be seconds, 0 or more")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(chat_api.listen(application(latency), port, MODEL))
