"""What the scripted teacher says: the role is known by the marks of our prompts, and follows rules.

`reply` is a pure function: the same messages always get the same text. The marks are those of
`engine/tasks` and of FastChat's reviewer prompts; whatever has none of them gets a plain answer.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.keys import Message
from engine.languages import find_language
from engine.scripted.rating import rate, words_of
from engine.scripted.translation import translate
from store.errors import UsageError

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
    schema = _schema(response_format)
    found = TRANSLATE.match(asked)
    if found is not None:
        return _translated(asked, found[1], schema)
    question, answers = _contest(asked)
    if answers:
        return _verdict(asked, question, answers, schema)
    plain = _plain(asked)
    return plain if schema is None else _json(_filled(schema, plain))


def _schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema that is asked for; an empty one for `json_object`; None for text."""
    kind = (response_format or {}).get("type", "text")
    if kind == "json_schema":
        found: Mapping[str, Any] = (response_format or {})["json_schema"]["schema"]
        return found
    return {} if kind == "json_object" else None


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


# Translate


def _translated(asked: str, name: str, schema: Mapping[str, Any] | None) -> str:
    """The tagged parts, each translated, in their tags again."""
    try:
        language = find_language(name)
    except UsageError:
        return f"(scripted: no language {name})"
    parts = [(tag, part, translate(text, language)) for tag, part, text in TAGGED.findall(asked)]
    if schema is not None:
        return _json({part: text for _, part, text in parts})
    return "\n".join(f"<{tag}>\n{text}\n</{tag}>" for tag, _, text in parts)


# Score, judge, compare


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
    if schema is not None:
        return _json(_as_object(schema, scores, better, why))
    first = f"[[{better}]]" if [place for place, _ in answers] == ["A", "B"] else " ".join(map(str, scores))
    return f"{why}\n\n{first}" if SCORES_LAST.search(asked) else f"{first}\n{why}"


def _as_object(schema: Mapping[str, Any], scores: Sequence[int], better: str, why: str) -> dict[str, Any]:
    """`score_1`, …, `preference` and texts, in the order of the schema."""
    values: dict[str, Any] = {f"score_{place}": score for place, score in enumerate(scores, 1)}
    values["preference"] = better
    names = schema.get("properties") or {**dict.fromkeys(values), "reasons": None}
    return {name: values.get(name, why) for name in names}


# Answer


def _plain(asked: str) -> str:
    """A short answer out of the words of the instruction; how many sentences, its hash decides."""
    template = ALPACA.search(asked)
    instruction = " ".join(part for part in template.groups() if part) if template else asked
    chinese = bool(re.search(r"[\u4e00-\u9fff]", instruction))
    words = _keywords(instruction, chinese)
    count = 1 + hashlib.sha256(instruction.encode()).digest()[0] % len(SENTENCES)
    sentences = [s.format(*words) for s in (SENTENCES_ZH if chinese else SENTENCES)[:count]]
    return "（脚本）" + "".join(sentences) if chinese else "(scripted) " + " ".join(sentences)


def _keywords(instruction: str, chinese: bool) -> list[str]:
    """Three of its longest words (of its stretches between signs, in Chinese), in their order."""
    found = re.findall(r"[\u4e00-\u9fff]{2,8}", instruction) if chinese else words_of(instruction)
    found = list(dict.fromkeys(word for word in found if chinese or len(word) >= KEYWORD))
    longest = sorted(found, key=len, reverse=True)[:3]
    chosen = [word for word in found if word in longest]
    return [*chosen, *["此事" if chinese else "the matter"] * (3 - len(chosen))]


def _filled(schema: Mapping[str, Any], text: str) -> Any:
    """Some value of a schema, with the text where one is wanted."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties: Mapping[str, Any] = schema.get("properties") or {"answer": {"type": "string"}}
        return {name: _filled(one, text) for name, one in properties.items()}
    return {"string": text, "integer": 1, "number": 1, "boolean": True, "array": []}.get(kind)
