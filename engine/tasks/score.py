"""Score the answers of several models to one prompt, 1-10 each (the paper's comparison data)."""

from typing import Any

from engine.tasks import parse_scores as reading
from engine.tasks.task import (
    LANGUAGES,
    Build,
    Prior,
    Task,
    check_language,
    contest_task,
    grades,
    messages,
    question,
    response_format,
    score_names,
)
from store.records import Contest, Message

NAME = "score"
# Completion tokens, log-normal. Nobody has published such replies; taken from GPT-4's 320 reviews of
# pairs (cl100k: median 114, mean 134, sigma of the log 0.36), as a line of scores and a short reason
# is asked for here as there. How far a judge of K answers departs from it is a guess.
PRIOR = Prior(median=124.0, sigma=0.36, low=0.3, high=3.0)

SYSTEM = {
    "English": "You are an impartial judge who reads every answer carefully and scores it exactly.",
    "Chinese": "你是一位公正的评审，会仔细阅读每一个回答并给出准确的分数。",
}
SHOWN = {
    "English": "### Instruction\n{question}\n\n{answers}\n\n### Your task\n{task}\n\n{form}",
    "Chinese": "### 指令\n{question}\n\n{answers}\n\n### 你的任务\n{task}\n\n{form}",
}
ANSWER = {
    "English": "### Answer {place}\n{answer}\n\n### End of answer {place}",
    "Chinese": "### 回答{place}\n{answer}\n\n### 回答{place}到此结束",
}
TASK = {
    "English": """\
Score each of the {count} answers to the instruction above from 1 (useless) to 10 (could not be better). \
Consider whether it does what was asked, is correct, helps the user, and goes into as much detail as is \
needed. Score each on its own merits: the place at which it is shown must not matter to you, nor does \
length by itself earn anything. Equal answers get equal scores.""",
    "Chinese": """\
请为上述指令的{count}个回答分别打分，从1分（毫无用处）到10分（好得无可挑剔）。请考虑：\
是否完成了要求，内容是否正确，\
对用户是否有帮助，详细程度是否恰当。请只看每个回答本身的优劣：出现的先后不应影响你，篇幅长短本身也不加分。\
同样好的回答应得同样的分数。""",
}
SCORES_FIRST = {
    "English": """\
Write on the first line only the {count} scores, in the order in which the answers are shown, separated by \
spaces. Give your reasons in a few sentences from the second line on.""",
    "Chinese": "第一行只写{count}个分数，按回答出现的顺序，用空格隔开。从第二行开始用几句话说明理由。",
}
AS_JSON = {
    "English": "Reply with the JSON object that is asked for: score_1 is for answer 1, and so on.",
    "Chinese": "请按要求以JSON对象作答：score_1是回答1的分数，以此类推。",
}
TEXTS = (SYSTEM, SHOWN, ANSWER, TASK, SCORES_FIRST, AS_JSON)


def task(system: str | None, language: str | None, structured: bool) -> Task:
    """The role. Raises UsageError for a language that it has no prompt in."""
    language = language or LANGUAGES[0]
    build = builder(system, language, structured)
    decisive = (*(text[language] for text in TEXTS), system, structured)
    return contest_task(NAME, PRIOR, decisive, build, read, schema)


def builder(system: str | None = None, language: str = "English", structured: bool = False) -> Build:
    """`build(contest) -> messages`. `system` replaces the system message. Raises UsageError."""
    check_language(language)
    form = (AS_JSON if structured else SCORES_FIRST)[language]

    def build(contest: Contest) -> list[Message]:
        count = len(contest.answers)
        shown = [
            ANSWER[language].format(place=place, answer=answer)
            for place, answer in enumerate(contest.answers, 1)
        ]
        text = SHOWN[language].format(
            question=question(contest),
            answers="\n\n".join(shown),
            task=TASK[language].format(count=count),
            form=form.format(count=count),
        )
        return messages(system or SYSTEM[language], text)

    return build


def read(contest: Contest, text: str) -> tuple[float, ...] | None:
    """The scores in the order shown, or None where the reply does not say them clearly."""
    return reading.scores(text, len(contest.answers))


def schema(contest: Contest) -> dict[str, Any]:
    """One score for each answer shown, then the reasons."""
    scores = grades(score_names(len(contest.answers)))
    return response_format("scores", {**scores, "reasons": {"type": "string"}})
