"""The replies of the scripted teacher, by simple rules. For tests and demos.

`reply` is pure: the same messages always get the same text. The task is recognised by marks in our prompts
and in FastChat's reviewer prompts; anything else gets a plain answer. Translation is into Chinese only,
word by word from a small glossary, else by sound; it is labelled and not meant to be read. Ratings depend
on length, on words of the question, on repetition and on broken text. They know nothing about truth.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson

from engine.tasks.language_check import UNCHANGED
from engine.tasks.languages import Language, find_language
from store.errors import UsageError
from store.records import Message

CHINESE_LABEL = "（脚本译文）"

# Words that instructions are made of. An empty value: a word that Chinese does without.
GLOSSARY_LINES = """
a,an,the,to,of,is,are,be,do,does,was,were=|about=关于|above=以上|advantages=优点|age=年龄|all=所有|and=和
animal,animals=动物|answer=回答|any=任何|apple=苹果|article=文章|ask=问|at,in,on=在|autumn=秋天|bad=坏
balcony=阳台|because=因为|best=最好的|better=更好|between=之间|big=大|book,books=书|boat=船|breakfast=早餐
brief,briefly=简短|but=但是|by=由|can=可以|cannot=不能|cat=猫|change=改变|check=检查|child=孩子|city=城市
classify=分类|clock=时钟|colleague=同事|colour,color=颜色|command=命令|compare=比较|computer=电脑
convert=转换|correct=改正|country=国家|create=创建|customer,customers=顾客|data=数据|day,days=天
decide=判断|define=定义|describe=描述|design=设计|difference=区别|each=每个|easy=容易|edit=编辑|e-mail=邮件
email=邮件|english=英语|even=偶数|example,examples=例子|explain=解释|false=假|file=文件|find=找出|five=五
following=以下|food=食物|for=为|four=四|french=法语|friend=朋友|from=从|fruit=水果|function=函数
generate=生成|given=给定的|give=给出|good=好|group=组|have,has=有|help=帮助|home=家|hour=小时|house=房子
how=如何|human=人|idea,ideas=想法|if=如果|information=信息|into=成|it=它|item,items=项目|job=工作
kind=种类|lake=湖|language=语言|large=大|larger=较大|largest=最大|learn=学习|letter,letters=信|life=生活
light=光|line,lines=行|list=列出|live=住|long=长|loop=循环|make=制作|many=多少|meaning=意思|means=意思是
message=消息|minutes=分钟|money=钱|more=更多|most=最|music=音乐|my=我的|name=名字|names=名字|negative=消极
new=新|night=夜|no=没有|not=不|number,numbers=数字|one=一个|or=或|order=顺序|paragraph=段落|people=人们
person=人|phrase=短语|plants=植物|poem=诗|polite=礼貌|positive=积极|provide=提供|question=问题|rain=雨
reason,reasons=理由|reply=回复|report=报告|review=评论|rewrite=改写|say=说|school=学校|sea=海|seconds=秒
sentence,sentences=句子|short=短|shorter=更短|should=应该|simple=简单|sky=天空|sleep=睡觉|so=所以|some=一些
song=歌|sound=声音|star=星星|state,states=状态|statement=陈述|step=步骤|story=故事|suggest=建议
summarise,summarize=总结|sunset=日落|table=表|tea=茶|tell=告诉|ten=十|text=文本|that,this=这|them,they=他们
there=那里|these=这些|three=三|through=通过|time=时间|tips=建议|title=标题|train=火车|translate=翻译
travel=旅行|tree=树|true=真|turn=变|two=两个|use=使用|vegetable=蔬菜|verb=动词|very=很|water=水|way=方式
we=我们|weather=天气|weekend=周末|what=什么|when=什么时候|where=哪里|whether=是否|which=哪个|who=谁|why=为什么
will=将|winter=冬天|with=用|without=没有|word,words=词|work=工作|world=世界|write=写|year=年|you=你|your=你的
"""
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
    entries = (entry.split("=") for entry in GLOSSARY_LINES.replace("\n", "|").strip("|").split("|"))
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
    if schema is not None:  # `score_1`, …, `preference` and texts, in the order of the schema
        values: dict[str, Any] = {f"score_{place}": score for place, score in enumerate(scores, 1)}
        values["preference"] = better
        names = schema.get("properties") or {**dict.fromkeys(values), "reasons": None}
        return _json({name: values.get(name, why) for name in names})
    first = f"[[{better}]]" if [place for place, _ in answers] == ["A", "B"] else " ".join(map(str, scores))
    return f"{why}\n\n{first}" if SCORES_LAST.search(asked) else f"{first}\n{why}"


# Answer


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
