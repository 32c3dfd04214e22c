"""Compare two answers to one prompt: the first is better, the second is, or neither."""

from typing import Any

from engine.tasks import parse_scores as reading
from engine.tasks.parse_scores import Preference
from engine.tasks.task import (
    LANGUAGES,
    Build,
    Prior,
    Task,
    check_language,
    contest_task,
    messages,
    question,
    response_format,
)
from store.records import Contest, Message

NAME = "compare"
# Completion tokens, log-normal: as of GPT-4's 320 published reviews of pairs (cl100k: median 114,
# mean 134, sigma of the log 0.36). A judge that writes the verdict alone needs 5; hence the low end.
PRIOR = Prior(median=124.0, sigma=0.36, low=0.1, high=2.5)

SYSTEM = {
    "English": "You are an impartial judge who decides which of two answers is the better.",
    "Chinese": "你是一位公正的评审，负责判断两个回答中哪一个更好。",
}
SHOWN = {
    "English": """\
### Instruction
{question}

### Answer A
{first}

### End of answer A

### Answer B
{second}

### End of answer B

### Your task
Decide which answer serves the user better. Consider whether it does what was asked, is correct, helps, and \
goes into as much detail as is needed. Which answer is shown first must not matter to you, nor does length \
by itself earn anything.

{form}""",
    "Chinese": """\
### 指令
{question}

### 回答A
{first}

### 回答A到此结束

### 回答B
{second}

### 回答B到此结束

### 你的任务
请判断哪个回答对用户更好。请考虑：是否完成了要求，内容是否正确，是否有帮助，详细程度是否恰当。\
请不要因为回答出现的先后而有所偏向，篇幅长短本身也不加分。

{form}""",
}
VERDICT_FIRST = {
    "English": """\
Write on the first line only your verdict: [[A]] when answer A is better, [[B]] when answer B is better, \
[[C]] when they are equally good. Give your reasons in a few sentences from the second line on.""",
    "Chinese": """\
第一行只写你的结论：回答A更好写[[A]]，回答B更好写[[B]]，同样好写[[C]]。从第二行开始用几句话说明理由。""",
}
AS_JSON = {
    "English": "Reply with the JSON object that is asked for: the preference is A, B, or C for equally good.",
    "Chinese": "请按要求以JSON对象作答：preference为A、B，同样好则为C。",
}
TEXTS = (SYSTEM, SHOWN, VERDICT_FIRST, AS_JSON)


def task(system: str | None, language: str | None, structured: bool) -> Task:
    """The role. Raises UsageError for a language that it has no prompt in."""
    language = language or LANGUAGES[0]
    build = builder(system, language, structured)
    decisive = (*(text[language] for text in TEXTS), system, structured)
    return contest_task(NAME, PRIOR, decisive, build, read, schema)


def builder(system: str | None = None, language: str = "English", structured: bool = False) -> Build:
    """`build(contest) -> messages`. `system` replaces the system message. Raises UsageError."""
    check_language(language)
    form = (AS_JSON if structured else VERDICT_FIRST)[language]

    def build(contest: Contest) -> list[Message]:
        first, second = contest.answers
        text = SHOWN[language].format(question=question(contest), first=first, second=second, form=form)
        return messages(system or SYSTEM[language], text)

    return build


def read(contest: Contest, text: str) -> Preference | None:
    """Which of the answers shown is the better, or None where the reply does not say it clearly."""
    return reading.preference(text)


def schema(contest: Contest) -> dict[str, Any]:
    """The preference, then the reasons."""
    verdict = {"type": "string", "enum": ["A", "B", "C"]}
    return response_format("preference", {"preference": verdict, "reasons": {"type": "string"}})
