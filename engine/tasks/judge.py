"""Judge two answers to one question: a score from 1 to 10 for each, and why.

Three reviewers by the question's category (general, coding, math), asking what Vicuna's reviewers
ask, in our words. The same in Chinese.

FastChat's published reviewer prompts can take their place, for exact reproduction: one JSON object a line,
with `system_prompt`, `prompt_template` with {question}, {answer_1}, {answer_2} and the names of `defaults`
(there {prompt}), `category`. Filled in as FastChat's eval_gpt_review.py does, with str.format, which never
looks for braces in the values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

import orjson

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
from store.errors import UsageError
from store.records import Contest, Message, kind_of

PLACES = ("question", "answer_1", "answer_2")


@dataclass(frozen=True, slots=True)
class ReviewPrompt:
    """One reviewer. defaults: what else the template names, in pairs of name and text."""

    category: str
    system: str
    template: str
    defaults: tuple[tuple[str, str], ...]

    def fill(self, question: str, answer_1: str, answer_2: str) -> str:
        return self.template.format(
            question=question, answer_1=answer_1, answer_2=answer_2, **dict(self.defaults)
        )


def read_prompts(text: str, name: str) -> tuple[ReviewPrompt, ...]:
    """All prompts of a file's text. Raises UsageError with the file's name and the line of one that
    cannot be used."""
    prompts = []
    for number, line in enumerate(text.encode().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            words = f"not JSON ({error}); expected one prompt in FastChat's shape"
            raise UsageError(f"{where}: {words}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{where}: not an object but {kind_of(row)}")
        defaults = row.get("defaults") or {}
        if not isinstance(defaults, dict) or not all(isinstance(text, str) for text in defaults.values()):
            raise UsageError(f"{where}: `defaults` must be an object of texts")
        template = _text(row, "prompt_template", where)
        _check_template(template, set(defaults), where)
        system = _text(row, "system_prompt", where) if "system_prompt" in row else ""
        category = _text(row, "category", where)
        prompts.append(ReviewPrompt(category, system, template, tuple(defaults.items())))
    if not prompts:
        raise UsageError(f"{name} holds no prompt; expected FastChat's shape, one JSON object a line")
    return tuple(prompts)


def chosen(prompts: tuple[ReviewPrompt, ...], category: str) -> ReviewPrompt:
    """The first of the category, else the general one, else the first (as FastChat does)."""
    for wanted in (category, "general"):
        for prompt in prompts:
            if prompt.category == wanted:
                return prompt
    return prompts[0]


def _text(row: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise UsageError(f"{where}: `{name}` must be a text, found {value!r:.60}")
    return value


def _check_template(template: str, defaults: set[str], where: str) -> None:
    """Nothing but plain names: {question.__class__} or {answer_1!r} would be another text."""
    if clash := defaults.intersection(PLACES):
        raise UsageError(f"{where}: `defaults` must not name {', '.join(sorted(clash))}")
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UsageError(
            f"{where}: `prompt_template`: {error}; write a brace itself as {{{{ or }}}}"
        ) from error
    known = {*PLACES, *defaults}
    for name, spec, how in fields:
        if name not in known or spec or how:
            shown = name + (f"!{how}" if how else "") + (f":{spec}" if spec else "")
            names = ", ".join(f"{{{n}}}" for n in sorted(known))
            raise UsageError(f"{where}: `prompt_template` has {{{shown}}}; it may have {names}")
    if missing := [name for name in PLACES if name not in {field for field, *_ in fields}]:
        raise UsageError(f"{where}: `prompt_template` never shows {{{missing[0]}}}")


NAME = "judge"
# Completion tokens, log-normal. Measured with cl100k on GPT-4's 320 published reviews (Vicuna's
# questions): median 114, mean 134, sigma of the log 0.36; coding and math 274 and 300, the rest 113.
# The four files' means lie within 7 % of each other. How much more another judge writes is a guess.
PRIOR = Prior(median=124.0, sigma=0.36, low=0.7, high=2.5)

SYSTEM = {
    "English": "You are an impartial judge who compares two answers carefully and scores them exactly.",
    "Chinese": "你是一位公正的评审，会仔细比较两个回答并给出准确的分数。",
}
SHOWN = {
    "English": """\
### Question
{question}

### Answer of Assistant 1
{first}

### End of the answer of Assistant 1

### Answer of Assistant 2
{second}

### End of the answer of Assistant 2

### Your task
{task}

{form}""",
    "Chinese": """\
### 问题
{question}

### 助手1的回答
{first}

### 助手1的回答到此结束

### 助手2的回答
{second}

### 助手2的回答到此结束

### 你的任务
{task}

{form}""",
}
GENERAL = {
    "English": """\
Judge how well each assistant answers the question above. Consider whether the answer helps the user, keeps \
to the question, is correct, and goes into as much detail as the question deserves. Score each answer as a \
whole from 1 (useless) to 10 (could not be better). Which answer is shown first must not matter to you, nor \
does length by itself earn anything.""",
    "Chinese": """\
请评价两位助手对上述问题的回答。请考虑：回答对用户是否有帮助，是否切题，内容是否正确，详细程度是否恰当。\
请为每个回答打一个总体分数，从1分（毫无用处）到10分（好得无可挑剔）。请不要因为回答出现的先后而有所偏向，\
篇幅长短本身也不加分。""",
}
CODING = {
    "English": """\
Both assistants were asked for a program. Review their code as you would review a colleague's: does it \
solve the problem as stated, is it correct and efficient, is it well structured and easy to read, does it \
follow good practice, do its comments explain what needs explaining? Note strengths, weaknesses and what \
should be improved. Score each answer from 1 (no code, or none that makes sense) to 10 (flawless). Which \
answer is shown first must not matter to you.""",
    "Chinese": """\
两位助手都被要求编写程序。请像审查同事的代码那样审查他们的代码：是否解决了题目所述的问题，是否正确、高效，\
结构是否清晰、易读，是否符合良好的编程规范，注释是否说明了需要说明的地方。请指出优点、缺点和可以改进之处。\
请为每个回答打分，从1分（没有代码或代码毫无意义）到10分（完美）。请不要因为回答出现的先后而有所偏向。""",
}
MATH = {
    "English": """\
The question is mathematical. First solve it yourself, without looking at the two answers. Then follow each \
assistant's solution step by step and point out every step that is wrong. Score each answer from 1 to 10, \
for its steps as well as for its result. Which answer is shown first must not matter to you.""",
    "Chinese": """\
这是一道数学问题。请先不看两位助手的回答，自己独立解题。然后逐步检查每位助手的解题过程，\
指出每一个错误的步骤。\
请为每个回答打分，从1分到10分，既看步骤，也看结果。请不要因为回答出现的先后而有所偏向。""",
}
SCORES_FIRST = {
    "English": """\
Write on the first line only the two scores, that of Assistant 1 and that of Assistant 2, separated by a \
space. Explain your judgement from the second line on.""",
    "Chinese": "第一行只写两个分数，先是助手1的，后是助手2的，中间用一个空格隔开。从第二行开始说明你的理由。",
}
SCORES_LAST = {
    "English": """\
Write your solution and your review first. End with a line that holds only the two scores, that of \
Assistant 1 and that of Assistant 2, separated by a space.""",
    "Chinese": "请先写出你的解答和评审。最后一行只写两个分数，先是助手1的，后是助手2的，中间用一个空格隔开。",
}
AS_JSON = {
    "English": """\
Reply with the JSON object that is asked for: score_1 is for Assistant 1, score_2 for Assistant 2.""",
    "Chinese": "请按要求以JSON对象作答：score_1是助手1的分数，score_2是助手2的分数。",
}
TEXTS = (SYSTEM, SHOWN, GENERAL, CODING, MATH, SCORES_FIRST, SCORES_LAST, AS_JSON)
TASKS = {"general": GENERAL, "coding": CODING, "math": MATH}  # FastChat's categories; all others are general


def task(prompt: str | None, system: str | None, language: str | None, structured: bool) -> Task:
    """The role. `prompt`: the text of a FastChat prompt file. Raises UsageError."""
    prompts = read_prompts(prompt, "--prompt") if prompt is not None else ()
    language = language or LANGUAGES[0]
    build = builder(prompts, system, language, structured)
    decisive = (*(text[language] for text in TEXTS), prompt, system, structured)
    return contest_task(NAME, PRIOR, decisive, build, read, schema)


def builder(
    prompts: tuple[ReviewPrompt, ...] = (),
    system: str | None = None,
    language: str = "English",
    structured: bool = False,
) -> Build:
    """`build(contest) -> messages`. `prompts`: of a FastChat file, instead of ours; they say
    themselves how to answer. `system` replaces the system message. Raises UsageError."""
    check_language(language)

    def build(contest: Contest) -> list[Message]:
        if prompts:
            prompt = chosen(prompts, contest.category)
            return messages(system or prompt.system, prompt.fill(question(contest), *contest.answers))
        form = AS_JSON if structured else SCORES_LAST if contest.category == "math" else SCORES_FIRST
        text = SHOWN[language].format(
            question=question(contest),
            first=contest.answers[0],
            second=contest.answers[1],
            task=TASKS.get(contest.category, GENERAL)[language],
            form=form[language],
        )
        return messages(system or SYSTEM[language], text)

    return build


def read(contest: Contest, text: str) -> tuple[float, float] | None:
    """The scores in the order shown, or None where the reply does not say them clearly."""
    return reading.two_scores(text)


def schema(contest: Contest) -> dict[str, Any]:
    """Math is worked out before it is scored; otherwise the scores come first, as on a first line."""
    why: Mapping[str, Any] = {"review": {"type": "string"}}
    scores = grades(score_names(2))
    return response_format("scores", {**why, **scores} if contest.category == "math" else {**scores, **why})
