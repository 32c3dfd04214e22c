"""What a judge is asked, in whose words, and that its reply in the form asked for is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.tasks import compare, judge, score
from engine.tasks.judge import ReviewPrompt, chosen, read_prompts
from store.errors import UsageError
from store.records import Contest

HOSTILE = "{question} {0} {answer_2!r} {{}} %s \\1"  # an answer is text, whatever stands in it


def contest(
    category: str = "generic", answers: tuple[str, ...] = ("One.", "Two."), given: str = ""
) -> Contest:
    models = tuple("abcdef"[: len(answers)])
    return Contest("7", "Why is the sky blue?", given, category, models, answers, tuple(range(len(answers))))


def user(messages: Any) -> str:
    assert [m["role"] for m in messages] == ["system", "user"]
    return str(messages[1]["content"])


BUILDERS = {"judge": judge.builder, "score": score.builder, "compare": compare.builder}
TASKS = {"judge": judge, "score": score, "compare": compare}


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("task", BUILDERS)
def test_question_and_answers_are_shown_whole_and_in_their_order(task: str, language: str) -> None:
    text = user(BUILDERS[task](language=language)(contest(answers=(HOSTILE, "Two."), given="An input.")))
    assert "Why is the sky blue?\n\nAn input." in text
    assert text.index(HOSTILE) < text.index("Two.")


@pytest.mark.parametrize("task", BUILDERS)
def test_names_of_models_are_not_shown(task: str) -> None:
    row = Contest("7", "Q?", "", "", ("gpt-4-turbo", "vicuna-13b"), ("One.", "Two."), (1, 0))
    assert "gpt-4-turbo" not in str(BUILDERS[task]()(row))


@pytest.mark.parametrize("task", BUILDERS)
def test_a_language_without_a_prompt_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match="'German'"):
        BUILDERS[task](language="German")
    own = {"prompt": None} if task == "judge" else {}
    with pytest.raises(UsageError, match="'German'"):
        TASKS[task].task(**own, system=None, language="German", structured=False)


def test_there_are_three_reviewers_and_all_other_categories_are_general() -> None:
    build = judge.builder()
    texts = {c: user(build(contest(c))) for c in ("coding", "math", "generic", "writing", "", "general")}
    assert len(set(texts.values())) == 3
    assert "code" in texts["coding"]
    assert "solve it yourself" in texts["math"]
    assert texts["generic"] == texts["writing"] == texts[""] == texts["general"]


def test_every_answer_to_be_scored_is_numbered() -> None:
    text = user(score.builder()(contest(answers=("w", "x", "y", "z"))))
    assert [f"### Answer {n}\n{a}\n" in text for n, a in enumerate("wxyz", 1)] == [True] * 4
    assert "only the 4 scores" in text


def test_replies_in_the_form_asked_for_are_read() -> None:
    assert judge.read(contest(), "8 7\nThe first is better.") == (8, 7)
    assert judge.read(contest("math"), "x = 5 * 2 = 10\nBoth are right.\n\n8 7") == (8, 7)
    assert score.read(contest(answers=("w", "x", "y")), "8 7 9\nWell.") == (8, 7, 9)
    assert score.read(contest(answers=("w", "x", "y")), "8 7\nWell.") is None
    assert compare.read(contest(), "[[B]]\nMore detail.") == "second"
    assert compare.read(contest(), "Both have their merits.") is None


def filled(response_format: dict[str, Any], values: dict[str, Any]) -> str:
    """A reply that keeps to a schema, its properties in the schema's order."""
    assert response_format["type"] == "json_schema"
    assert response_format["json_schema"]["strict"] is True
    schema = response_format["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    for name, value in values.items():
        assert value in schema["properties"][name].get("enum", [value])
    return json.dumps({name: values[name] for name in schema["properties"]})


def test_replies_that_keep_to_the_schema_are_read() -> None:
    row = contest(answers=("w", "x", "y"))
    values = {"score_1": 8, "score_2": 7.5, "score_3": 10, "reasons": "Answer 1: 3 errors"}
    assert score.read(row, filled(score.schema(row), values)) == (8, 7.5, 10)
    values = {"score_1": 1, "score_2": 9.5, "review": "10 10"}
    assert judge.read(contest(), filled(judge.schema(contest()), values)) == (1, 9.5)
    values = {"preference": "C", "reasons": "[[A]] has 2 errors"}
    assert compare.read(contest(), filled(compare.schema(contest()), values)) == "tie"


def test_math_is_worked_out_before_it_is_scored() -> None:
    assert next(iter(judge.schema(contest("math"))["json_schema"]["schema"]["properties"])) == "review"
    assert next(iter(judge.schema(contest("coding"))["json_schema"]["schema"]["properties"])) == "score_1"


@pytest.mark.parametrize("task", TASKS)
def test_a_structured_prompt_does_not_ask_for_a_first_line(task: str) -> None:
    assert "first line" in user(BUILDERS[task]()(contest()))
    text = user(BUILDERS[task](structured=True)(contest()))
    assert "first line" not in text
    assert "JSON" in text


def test_a_system_message_of_ones_own_replaces_ours() -> None:
    assert judge.builder(system="Be stern.")(contest())[0] == {"role": "system", "content": "Be stern."}


# FastChat's prompt file.


def prompt_line(name: str, /, **changes: Any) -> dict[str, Any]:
    line = {
        "prompt_id": 1,
        "system_prompt": f"You review {name}.",
        "prompt_template": "[Q]\n{question}\n[1]\n{answer_1}\n[2]\n{answer_2}\n[S]\n{prompt}\n\n",
        "defaults": {"prompt": f"Rate these, as {name}. Use {{braces}}."},
        "description": "x",
        "category": name,
    }
    return {**line, **changes}


def prompt_file(folder: Path, *lines: Any) -> Path:
    path = folder / "prompt.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prompts_of(path: Path) -> tuple[ReviewPrompt, ...]:
    return read_prompts(path.read_text(), str(path))


def test_a_fastchat_prompt_is_filled_in_exactly_as_fastchat_does(tmp_path: Path) -> None:
    prompts = prompts_of(prompt_file(tmp_path, prompt_line("general"), prompt_line("math")))
    messages = judge.builder(prompts)(contest("math", answers=(HOSTILE, "{prompt}")))
    line = prompt_line("math")
    as_fastchat = line["prompt_template"].format(
        question="Why is the sky blue?", answer_1=HOSTILE, answer_2="{prompt}", **line["defaults"]
    )
    assert messages == [
        {"role": "system", "content": "You review math."},
        {"role": "user", "content": as_fastchat},
    ]
    assert HOSTILE in as_fastchat


def test_other_categories_get_the_general_prompt_or_else_the_first(tmp_path: Path) -> None:
    prompts = prompts_of(prompt_file(tmp_path, prompt_line("math"), prompt_line("general")))
    assert chosen(prompts, "writing").category == "general"
    assert chosen(prompts, "").category == "general"
    assert chosen(prompts, "math").category == "math"
    assert chosen(prompts[:1], "writing").category == "math"


def test_doubled_braces_of_a_template_are_braces(tmp_path: Path) -> None:
    line = prompt_line("general", prompt_template="{{x}} {question} {answer_1} {answer_2}", defaults={})
    (prompt,) = prompts_of(prompt_file(tmp_path, line))
    assert prompt.fill("q", "a", "b") == "{x} q a b"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ([1], "not an object but list"),
        (prompt_line("x", prompt_template=None), "`prompt_template` must be a text, found None"),
        (prompt_line("x", category=3), "`category` must be a text"),
        (prompt_line("x", system_prompt=["x"]), "`system_prompt` must be a text"),
        (prompt_line("x", defaults=["x"]), "`defaults` must be an object of texts"),
        (prompt_line("x", defaults={"prompt": 1}), "`defaults` must be an object of texts"),
        (prompt_line("x", defaults={"prompt": "p", "question": "q"}), "must not name question"),
        (prompt_line("x", defaults={}), r"has \{prompt\}; it may have"),
        (prompt_line("x", prompt_template="{question} {answer_1}"), r"never shows \{answer_2\}"),
        (prompt_line("x", prompt_template="{question.__class__}"), "question.__class__"),
        (prompt_line("x", prompt_template="{question!r}"), r"\{question!r\}"),
        (prompt_line("x", prompt_template="{question} {}"), r"has \{\}"),
        (prompt_line("x", prompt_template="{question"), "write a brace itself as"),
    ],
)
def test_a_bad_prompt_is_named_by_file_and_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = prompt_file(tmp_path, prompt_line("general"), line)
    with pytest.raises(UsageError, match=complaint) as raised:
        prompts_of(path)
    assert f"{path}, line 2" in str(raised.value)


def test_a_prompt_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no prompt"):
        prompts_of(prompt_file(tmp_path))
    (tmp_path / "torn.jsonl").write_text('{"category": ')
    with pytest.raises(UsageError, match=r"torn.jsonl, line 1: not JSON"):
        prompts_of(tmp_path / "torn.jsonl")
