"""Writes a judge's reply in one way: plain text, and one private character for each label.

'Assistant 1', '助手2', 'Answer B' and 'Score 1:' say who is meant. Once each of them is a single
character, their own digits are no longer numbers, and what is left can be read by few rules
(engine/judging/wording.py). Knows nothing of scores.
"""

import re
import unicodedata

MOST_LABELS = 26
FIRST = 0xE000  # of Unicode's private area: label n is the character FIRST + n
LABEL = "[\ue001-\ue01a]"
BOTH = "\ue0ff"  # 'Assistant 1 and Assistant 2': all of them, in their order

_NOUN = (
    r"(?:(?:AI[ -]?)?(?:assistant|chatbot)|answer|response|model|candidate|submission|completion"
    r"|(?:AI)?助手|助理|回答|答案|回复|回應|模型|候选)"
)
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "one": 1, "two": 2, "three": 3, "four": 4}
_ORDINALS |= {sign: at for at, sign in enumerate("一二三四五六七八九", 1)} | {"甲": 1, "乙": 2, "丙": 3}
_NUMBER_WORDS = "one|two|three|four|[一二三四五六七八九甲乙丙]"
_ID = rf"(?:[1-9]\d?(?![\d.]*\d)|(?-i:[A-H])(?![A-Za-z\d])|(?:{_NUMBER_WORDS})(?![a-z]))"
_ONES_WORK = r"(?:['’]s(?: (?:answer|response|code|submission|solution|work))?|的(?:回答|答案|回复))?"
_LABELS = [
    re.compile(rf"\b(first|second|third|fourth) {_NOUN}{_ONES_WORK}", re.I),
    re.compile(rf"第([一二三四五六七八九])个?{_NOUN}"),
    re.compile(rf"{_NOUN}s? ?[#_]? ?({_ID}){_ONES_WORK}", re.I),
    re.compile(rf"\b(?:score|rating)[ _]?({_ID})(?=[\"']? ?[:=])", re.I),
    re.compile(rf"(?:评分|得分|分数) ?({_ID})(?=[\"']? ?[:=])"),
    re.compile(r"(?:^|(?<=[,;] ))([A-H])(?= ?: ?\d)", re.M),
    re.compile(r"^([1-9])[.):](?= \d{1,2}(?:\.\d+)?(?: ?/ ?10)? ?$)", re.M),
]
_AND = r" ?(?:, ?and|,|and|&|/|\||和|与|及) ?"
_TOGETHER = re.compile(rf"(?:both )?{LABEL}(?:{_AND}(?:{LABEL}|[1-9]\d?\b))+")
_FIRST_AND_SECOND = re.compile(rf"\bfirst and (?:the )?second {_NOUN}s?", re.I)

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.S | re.I)
_HALF = re.compile(r"(?<=\d) ?½|(?<=\d) 1/2(?!\d)")
_SIGNS = str.maketrans({"\ufeff": "", "\r": "", "、": ",", "。": ". "})
_TABLE_RULE = re.compile(r"^[ |:-]*-{3}[ |:-]*\n", re.M)
_BULLET = re.compile(r"^ ?(?:#{1,6} |> ?|[-*•] )+", re.M)
_EMPHASIS = re.compile(r"\*\*|__|`{1,3}(?:[a-z]+$)?|(?<![\w*])\*(?=[\d.]+\*)|(?<=\d)\*(?![\w*])", re.M)
_WRAPPED = re.compile(r"\$?\\boxed\{([^{}]*)\}\$?|\[\[([^\[\]\n]*)\]\]|<([\d.]+)>")


def without_thinking(text: str) -> str:
    """A reply without what a reasoning model said to itself; all of it where it never stopped."""
    return _THINKING.sub("", text)


def plain(text: str) -> str:
    """No Markdown, single spaces, half-width digits and signs, '7½' as 7.5, no thinking aloud."""
    text = _HALF.sub(".5", without_thinking(text)).replace("½", "?")  # NFKC would make it 1⁄2
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = re.sub(r"[ \t]+", " ", text)
    text = _BULLET.sub("", _EMPHASIS.sub("", _TABLE_RULE.sub("", text)))
    return re.sub(r"(?<=\d),(?=\d)", ", ", text)


def labelled(text: str, count: int) -> str:
    """The same text (made plain before) with every label as one private character."""
    text = _WRAPPED.sub(r"\1\2\3", text)
    if count == 2:
        text = _FIRST_AND_SECOND.sub(BOTH, text)
    for pattern in _LABELS:
        text = pattern.sub(_as_label, text)
    return _TOGETHER.sub(lambda together: _as_both(together[0], count), text)


def number_of(label: str) -> int:
    """Which answer a label means, from 1."""
    return ord(label) - FIRST


def _as_label(match: re.Match[str]) -> str:
    name = match[1].lower()
    number = _ORDINALS.get(name) or (int(name) if name.isdigit() else ord(name) - ord("a") + 1)
    return chr(FIRST + number) if number <= MOST_LABELS else match[0]


def _as_both(words: str, count: int) -> str:
    named = [int(word) if word.isdigit() else number_of(word) for word in re.findall(rf"{LABEL}|\d+", words)]
    return BOTH if named == list(range(1, count + 1)) else words
