"""Finds scores in the text of a judge's reply: which numbers are scores, and whose.

First 'Assistant 1', '助手2', 'Answer B' and 'Score 1:' become single private characters, so that their digits
are not taken for scores. Then each rule takes only numbers whose neighbours leave no doubt: arithmetic,
ranges, units and counts are not scores. All rules must agree; a reply that says two things has no score.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

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


Scores = tuple[float, ...]  # () in this module: a statement that is no score, or contradicts itself
Found = dict[int, set[float]]  # label -> all values that were said of it

LOWEST, HIGHEST = 1.0, 10.0
NONE_AT_ALL = 0.0  # in the form asked for only: GPT-4 gives '0 9' where one answer is empty
MOST_PARTS = 20

_NUM = r"(?<![A-Za-z\d_.$\-−–—])\d{1,3}(?:\.\d{1,2})?(?![A-Za-z\d_%°]|\.\d)"
_IN_WORDS = r"\(?out of (?:10|ten)\b\)?|points?\b|pts\b|分(?![钟之别])"
_OUT_OF = rf"(?: ?(?:/ ?10(?:\.0)?(?![\d.]*\d)|{_IN_WORDS}))"
_SEPARATOR = r"(?: ?(?:, ?and\b|[,;|&]|\band\b|和|与|及|/(?! ?10(?![\d.]*\d))) ?| )"
_SAID = r"(?:\b(?:scor(?:es?|ed|ing)|rat(?:es?|ed|ings?)|grades?|graded)\b|评分|得分|分数|打分|总分)"
_FINAL = r"(?:\b(?:overall|final|finally|total|conclusion|output)\b|总分|综合|总体|总评|最终|最后)"
_REASON = r"(?:and|while|whereas|but|with|for|because|since|as|due|respectively|overall)"
# After a score: the end of the line or of the sentence, a reason, the next label; never a further number.
_END = (
    rf"(?=[)\]}}\"'>]{{0,3}}(?: ?(?:$|\n|\()| ?(?:[,;:!|\[]|和|而|{LABEL}|{BOTH})(?! ?\d)"
    rf"| ?\.(?!\d)| [-–—] (?!\d)| {_REASON}\b(?! ?\d)))"
)
_SCORE = rf"({_NUM})(?:{_OUT_OF}{_END}| ?分(?![钟之别])|{_END})"
_FILLER = (
    rf"(?:[ :=|(\[\"'>→]|[-–—](?= )|{_SAID}|{_FINAL}|的|为|是|得|给|打|获得|应|了"
    r"|\b(?:is|was|an?|the|of|at|with|as|would|should|will|be|gets?|got|receives?|received|earns?|earned"
    r"|deserves?|i|give|my|for)\b)"
)
_AFTER_LABEL = re.compile(rf"({LABEL})({_FILLER}+?){_SCORE}", re.I | re.M)
_OUT_AFTER_LABEL = re.compile(rf"({LABEL})( )({_NUM}){_OUT_OF}", re.I)
_BEFORE_LABEL = re.compile(
    rf"((?:{_NUM}{_OUT_OF}?{_SEPARATOR})*)({_NUM}){_OUT_OF}?[)\]]*"
    rf" ?(?:\bfor\b|\bto\b|\(|->|→) ?(?:the )?({LABEL})",
    re.I,
)
_OPENING = re.compile(
    rf"(?:{_FINAL}(?: (?:verdict|result|judge?ment))? ?:? ?)?"
    rf"(?:{LABEL}{_FILLER}+?{_NUM}|{_NUM}{_OUT_OF}? ?(?:\bfor\b|\bto\b|\())",
    re.I,
)
_SAID_ONCE = re.compile(rf"({_SAID})({_FILLER}*?){_SCORE}", re.I | re.M)
_HEADING = re.compile(
    rf"^[^\n{LABEL[1:-1]}]{{0,40}}({LABEL})(?: ?$|[^\n]{{0,40}}: ?$|:)", re.M
)  # a line that names one
_RANGE = re.compile(
    r"\b(?:between|from|range|scale|least|most|than|up to|below|above|second.*first)\b|之间|满分|范围", re.I
)


class Rules:
    """The rules for replies that score `count` answers; compiled once for each count."""

    def __init__(self, count: int) -> None:
        # `count` numbers in a row: either each out of ten or none ('8/10' is one number, not two)
        none = _SEPARATOR.join([f"({_NUM})"] * count) + f"(?: ?(?:{_IN_WORDS}))?"
        each = rf"{_OUT_OF}(?:{_SEPARATOR}|)".join([f"({_NUM})"] * count) + _OUT_OF
        numbers = rf"[(\[<{{\"']{{0,3}}(?:{each}|{none})[)\]>}}\"']{{0,3}}"
        self._count = count
        self._bare = re.compile(rf"{numbers}[.!]?", re.I)
        self._opening = re.compile(rf"{numbers}(?: ?[:.;]| [-–—])? (?=[A-Z(]|{LABEL}|{BOTH})")
        gap = rf"([^\d\n.;!?{LABEL[1:-1]}]{{0,60}}?)"
        said = rf"(?:{_SAID}|{BOTH}|\bgive\b|\bassign\b|{_FINAL} ?:)"
        self._stated = re.compile(rf"{said}{gap}{numbers}{_END}", re.I | re.M)
        self._to_both = re.compile(rf"(?<![\d/,]) ?{numbers} ?(?:(?:\bfor\b|\bto\b) ?)?\(?{BOTH}", re.I)

    def read(self, text: str) -> Scores | None:
        """The scores in the order of the labels, or None. `text`: plain and labelled."""
        lines = [line for whole in text.splitlines() if (line := whole.strip(" |"))]
        if not lines:
            return None
        if (first := self._first_line(lines)) is not None:
            return first or None
        for part in _parts(text):
            by_label = self._complete(_by_label(part)) if _meant_as_scores(part) else None
            if by_label is None:
                by_label = self._complete(_by_heading(part))
            said = {by_label} if by_label is not None else set()
            if found := said | set(self._statements(part)) | set(self._own_lines(part)):
                return (found.pop() or None) if len(found) == 1 else None
        return None

    def _first_line(self, lines: list[str]) -> Scores | None:
        """What the prompt asked for. (): a line of numbers that are not `count` scores."""
        if match := self._bare.fullmatch(lines[0]) or self._opening.match(lines[0]):
            return self._numbers(match, NONE_AT_ALL)
        if not re.search(r"\d", lines[0]) or re.search(r"[^\d\s.,;:/|()\[\]+\-–—]", lines[0]):
            return None
        one_a_line = [re.fullmatch(rf"({_NUM}){_OUT_OF}?\.?", line) for line in lines[: self._count + 1]]
        singles = tuple(float(match[1]) for match in one_a_line[: self._count] if match)
        if len(singles) == self._count > 1 and not any(one_a_line[self._count :]):
            return in_range(singles) or ()
        return () if self._count > 1 or one_a_line[0] else None

    def _numbers(self, match: re.Match[str], lowest: float = LOWEST) -> Scores:
        groups = match.groups()[-2 * self._count :]
        return in_range(tuple(float(group) for group in groups if group), lowest) or ()

    def _complete(self, said: Found) -> Scores | None:
        """The scores when each answer has one; None when one has none."""
        if set(said) != set(range(1, self._count + 1)):
            return () if len(said) > self._count else None
        if any(len(values) != 1 for values in said.values()):
            return ()
        return in_range(tuple(min(said[label]) for label in sorted(said))) or ()

    def _statements(self, text: str) -> Iterator[Scores]:
        """'Scores: 8, 9', 'they score 8 and 9', '(8, 9) for Assistant 1 and Assistant 2'."""
        for match in self._stated.finditer(text):
            if not _RANGE.search(match[1]):
                yield self._numbers(match)
        yield from map(self._numbers, self._to_both.finditer(text))

    def _own_lines(self, text: str) -> Iterator[Scores]:
        """Lines of nothing but the numbers: below 'Scores:', or as a paragraph of their own."""
        lead, before = "", ""
        lines = [*(line.strip(" |") for line in text.splitlines()), ""]
        for line, after in pairwise(lines):
            if match := self._bare.fullmatch(line):
                alone = not before and not after and not re.search(r"[:=,]$", lead)
                if alone or re.search(rf"{_SAID}|{_FINAL}|{BOTH}", lead, re.I):
                    yield self._numbers(match)
            lead, before = line or lead, line


def in_range(scores: Scores, lowest: float = LOWEST) -> Scores | None:
    return scores if scores and all(lowest <= score <= HIGHEST for score in scores) else None


def _parts(text: str) -> Iterator[str]:
    """Where the verdict may stand: from the last heading on, from the one before, ..., in all."""
    starts = [
        match.start()
        for match in re.finditer(r"^.*$", text, re.M)
        if re.search(_FINAL, match[0], re.I) or re.search(rf"{_SAID}.*: ?$", match[0], re.I)
    ]
    yield from (text[start:] for start in reversed(starts[-MOST_PARTS:]))
    yield text


def _by_label(text: str) -> Found:
    """'Assistant 1: 8', 'a score of 8 to Assistant 1', 'Assistant 1 gets 8 out of 10'."""
    found: Found = defaultdict(set)
    for pattern in (_AFTER_LABEL, _OUT_AFTER_LABEL):
        for match in pattern.finditer(text):
            found[number_of(match[1])].add(float(match[3]))
    for match in _BEFORE_LABEL.finditer(text):
        if not match[1]:
            found[number_of(match[3])].add(float(match[2]))
    return found


def _by_heading(text: str) -> Found:
    """'Assistant 1:' as a heading, and one score somewhere below it."""
    found: Found = defaultdict(set)
    starts = list(_HEADING.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):
        said = _SAID_ONCE.findall(text[start.end() : end])
        last = [value for word, filler, value in said if re.search(_FINAL, word + filler, re.I)]
        found[number_of(start[1])] |= {float(value) for value in last or [value for *_, value in said]}
    return {label: values for label, values in found.items() if values}


def _meant_as_scores(text: str) -> bool:
    """Numbers beside labels may be the answers themselves, or counts: somebody must have said
    'score', or they must open or close the reply with nothing announced before them."""
    if re.search(rf"{_SAID}|{_NUM}{_OUT_OF}|\b(?:give|assign)\b", text, re.I):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    opening = [_OPENING.match(line) is not None for line in lines]
    if True not in opening:
        return False
    first = opening.index(True)
    return first == 0 or (opening[-1] and not lines[first - 1].rstrip().endswith(":"))
