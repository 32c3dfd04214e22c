"""Reads a judge's reply: the scores that it gave, or which answer it preferred.

Pure. A reply is read as JSON where there is some, else by its words (engine/tasks/score_wording.py). Where it
leaves room for doubt the result is None, which is no score: the raw reply is kept, and a better
reader may be run over it later. Scores are 1-10, halves and other fractions allowed.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, cast

import orjson

from engine.tasks.score_wording import Rules, Scores, in_range, labelled, plain, without_thinking

Preference = Literal["first", "second", "tie"]

_FENCED = re.compile(r"```(?:json\w*)?[ \t]*\n?(.*?)```", re.S | re.I)
MOST_OBJECTS = 20
_rules = cache(Rules)  # by the count of answers
_PREFERENCES = ("preference", "verdict", "winner", "better", "choice")
_LISTS = ("scores", "score", "ratings", "rating", "评分", "分数", "得分")
_NAME = r"(?:assistant|answer|response|model|candidate|score|rating|助手|回答|答案|模型|评分|得分|分数)"
_NUMBERED = re.compile(rf"(?:{_NAME}[ _-]*)+([1-9]\d?|[a-h])(?:['’]s)?[ _-]*(?:{_NAME})?", re.I)
_BARE_LABEL = re.compile(r"([1-9]\d?|[a-h])", re.I)
_WORDS = {"first": 1, "second": 2, "third": 3}
_ONE = re.compile(r"\s*(\d{1,2}(?:\.\d+)?)\s*(?:/\s*10|out of 10|分|points?)?\s*")

_VERDICTS: dict[str, Preference] = {"a": "first", "1": "first", "b": "second", "2": "second"}
_VERDICTS |= {"c": "tie", "tie": "tie", "draw": "tie", "first": "first", "second": "second", "平局": "tie"}
_VERDICTS |= {"a>b": "first", "a>>b": "first", "b>a": "second", "b>>a": "second", "a=b": "tie"}
_VERDICTS |= {"b<a": "first", "a<b": "second", "both": "tie", "equal": "tie", "neither": "tie"}
_IN_BRACKETS = re.compile(r"\[\[\s*([A-Ca-c]|[12]|tie|[AB]\s*(?:>{1,2}|<{1,2}|=)\s*[AB])\s*\]\]", re.I)
_CALLED = r"(?:verdict|preference|choice|judge?ment|winner|answer|output|结论|判断|选择)"
_LEAD = rf"(?:(?:my\s+)?(?:final\s+)?{_CALLED}\s*[:=]\s*)?"
_FIRST_LINE = re.compile(
    rf"{_LEAD}[\[(\"']*(?:(?:the\s+)?(?:assistant|answer|response|option|助手|回答|答案)\s*)?"
    r"(a|b|c|1|2|tie|draw|平局|first|second)(?![a-z\d])[\])\"']*"
    r"(?:\s*(?:is|wins|更好|较好|更优)(?:\s+(?:the\s+)?(?:better|best|winner)(?:\s+(?:one|answer|response))?)?)?[.!。]?",
    re.I,
)


def two_scores(text: str) -> tuple[float, float] | None:
    """The scores of the answer shown first and of the one shown second, or None."""
    return cast("tuple[float, float] | None", scores(text, 2))


def scores(text: str, count: int) -> Scores | None:
    """The scores of `count` answers in the order in which they were shown, or None."""
    structured = {_scores_in(value, count) for value in _json_in(text)} - {None}
    if structured:
        return structured.pop() if len(structured) == 1 else None
    if text.strip()[:1] in ("{", "[") and _loaded(text.strip()) is not None:
        return None
    return _rules(count).read(labelled(plain(text), count))


def preference(text: str) -> Preference | None:
    """Which of two answers is the better: [[A]], [[B]], or [[C]] for a tie; or None."""
    for value in _json_in(text):
        if isinstance(value, dict):
            names = [value[key] for key in _PREFERENCES if isinstance(value.get(key), str)]
            words = r"^\W+|\W+$|\b(?:assistant|answer|response)\b"
            if names and (found := _verdict(re.sub(words, "", names[0], flags=re.I))):
                return found
    text = plain(text).strip()
    first_line = text.split("\n", 1)[0].strip()
    in_brackets = [_verdict(name) for name in _IN_BRACKETS.findall(text)]
    if exact := _IN_BRACKETS.fullmatch(first_line.rstrip(".")):
        return _verdict(exact[1])
    if in_brackets:
        return in_brackets[0] if len(set(in_brackets)) == 1 else None
    match = _FIRST_LINE.fullmatch(first_line)
    return _verdict(match[1]) if match else None


def _verdict(name: str) -> Preference | None:
    return _VERDICTS.get(re.sub(r"\s", "", name).lower())


def _json_in(text: str) -> Iterator[Any]:
    """What is JSON in a reply: all of it, else what is fenced, else its objects."""
    text = without_thinking(text).strip()
    pieces = [text] if text[:1] in ("{", "[") else []
    pieces += _FENCED.findall(text)
    found = [value for piece in pieces if isinstance(value := _loaded(piece), dict | list)]
    yield from found or _objects_in(text)


def _objects_in(text: str) -> Iterator[Any]:
    """JSON objects in the middle of prose."""
    at = -1
    for _ in range(MOST_OBJECTS):
        if (at := text.find("{", at + 1)) < 0:
            return
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        yield value
        at = end - 1


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _scores_in(value: Any, count: int) -> Scores | None:
    if isinstance(value, list):
        found = [_one_score(item) for item in value]
        if any(one is None for one in found) or len(found) != count:
            return None
        return in_range(tuple(one for one in found if one is not None))
    if not isinstance(value, dict):
        return None
    for key, inner in value.items():
        if key.lower() in _LISTS and isinstance(inner, list | dict):
            return _scores_in(inner, count)
    return _labelled_scores(value, count)


def _labelled_scores(value: dict[str, Any], count: int) -> Scores | None:
    by_label: dict[int, float] = {}
    label: int | None
    for key, inner in value.items():
        key, score = key.strip().lower(), _one_score(inner)
        if match := _NUMBERED.fullmatch(key) or _BARE_LABEL.fullmatch(key):
            name = match[1]
            label = int(name) if name.isdigit() else ord(name) - ord("a") + 1
        else:
            label = _WORDS.get(key.removesuffix("_score").removesuffix(" score"))
        if label is None or score is None:
            continue
        if label in by_label:
            return None
        by_label[label] = score
    if sorted(by_label) != list(range(1, count + 1)):
        return None
    return in_range(tuple(by_label[label] for label in sorted(by_label)))


def _one_score(value: Any) -> float | None:
    if isinstance(value, dict):
        inner = [value[key] for key in value if key.lower() in _LISTS]
        return _one_score(inner[0]) if len(inner) == 1 else None
    if isinstance(value, str):
        match = _ONE.fullmatch(plain(value))
        return float(match[1]) if match else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
