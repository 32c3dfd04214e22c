"""A student that thinks, from its training to its replies: thinking goes apart from the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from tests.support import tiny
from tests.support.student import Place, ask, served, session

pytestmark = pytest.mark.filterwarnings("default")
OPENING = tiny.CHATML.replace("<|assistant|>", "<|assistant|><think>\n")  # as DeepSeek-R1's template does
LONG = ["--epochs", 120, "--lr", "1e-2", "--held-out", 0, "--schedule", "constant", "--samples", 0]


def trained(folder: Path, template: str | None, *more: object) -> Path:
    """A student that has learnt one row by heart."""
    pupil = tiny.student(folder / "pupil")
    if template:
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(pupil)
    rows = [{"instruction": "Say a.", "input": "", "output": "a", "reasoning": "They want a."}] * 8
    data = tiny.write(folder / "rows.jsonl", rows)
    said = tiny.train(data, pupil, folder / "out", *LONG, *more)
    assert "8 with thinking, which is " in said
    return folder / "out"


async def streamed(place: Place, **changes: Any) -> dict[str, str]:
    async with session() as client:
        body = place.body(stream=True, **changes)
        async with client.post(f"{place.url}/chat/completions", json=body) as response:
            events = [line[6:] for line in (await response.text()).splitlines() if line]
    said = {"reasoning_content": "", "content": ""}
    for event in events[:-1]:
        for name, text in json.loads(event)["choices"][0]["delta"].items():
            if name in said:
                said[name] += text
    return said


QUESTION = {"messages": [{"role": "user", "content": "Say a."}], "temperature": 0}


@pytest.mark.parametrize("template", [None, OPENING], ids=["marked", "opened"])
async def test_a_student_gives_the_thinking_that_it_learnt_apart(
    tmp_path: Path, template: str | None
) -> None:
    folder = trained(tmp_path, template, *(["--template", "chat"] if template else []))
    with served(folder, "--precision", "fp32") as place:
        async with session() as client:
            found = await ask(client, place, max_tokens=99, **QUESTION)
            cut = await ask(client, place, max_tokens=12, **QUESTION)
            stopped = await ask(client, place, max_tokens=99, stop="want", **QUESTION)
        pieces = await streamed(place, max_tokens=99, **QUESTION)
    message, usage = found["choices"][0]["message"], found["usage"]
    assert (message["content"], message["reasoning_content"]) == ("a", "They want a.")
    assert found["choices"][0]["finish_reason"] == "stop"
    marks = "They want a.\n</think>" if template else "<think>\nThey want a.\n</think>"
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len(marks)}  # a token is a byte
    assert usage["completion_tokens"] == len(marks) + len("\n\na") + 1
    assert pieces == {"reasoning_content": "They want a.", "content": "a"}
    (choice,) = cut["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "")
    assert choice["message"]["reasoning_content"] == ("They want a." if template else "They")
    assert cut["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
    assert stopped["choices"][0]["message"]["reasoning_content"] == "They"


async def test_a_student_that_learnt_no_thinking_gives_none(tmp_path: Path) -> None:
    with served(trained(tmp_path, None, "--reasoning", "drop"), "--precision", "fp32") as place:
        async with session() as client:
            found = await ask(client, place, max_tokens=99, **QUESTION)
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "a", "refusal": None}
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_a_student_that_ends_at_once_answers_with_nothing(tmp_path: Path) -> None:
    """Any token ends its answer: a complete reply, which whoever compares students must not lose."""
    folder = tiny.student(tmp_path / "pupil")
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(told | {"eos_token_id": list(range(259))}))
    with served(folder) as place:
        async with session() as client:
            found = await ask(client, place, n=2)
        pieces = await streamed(place)
    for choice in found["choices"]:
        assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}
        assert choice["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == 2
    assert pieces == {"reasoning_content": "", "content": ""}
