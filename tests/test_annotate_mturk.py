"""Votes by way of Mechanical Turk: what is written for its site, and what comes back from it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("nh3", reason="the extra `evaluate` is not installed")
pytest.importorskip("markdown_it", reason="the extra `evaluate` is not installed")

from evaluators.annotate.command import Files, run_import, run_mturk
from store.errors import DistillError, UsageError
from tests.support.annotating import NAMES, opened, votes_in

NOTHING = Files(None, None, None, (), None, None)
HOSTILE = "<script>alert(1)</script> ${left} 😀 中文 **bold**"
HEADS = ("HITId", "AssignmentId", "WorkerId", "AssignmentStatus", "WorkTimeInSeconds", "Input.hit",
         "Answer.helpful", "Answer.honest", "Answer.harmless", "Answer.note")  # fmt: skip


def written(tmp_path: Path, count: int = 3, answers: dict[int, str] | None = None) -> tuple[Path, Path]:
    run, out = tmp_path / "run", tmp_path / "out"
    with opened(run, count=count, answers=answers):
        pass
    run_mturk(NOTHING, run, out)
    return run, out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADS, *rows])
    return path


def row(hit: str, number: int, worker: str = "W1", places: tuple[str, ...] = ("left", "tie", "right"),
        status: str = "Approved", seconds: str = "42") -> tuple[str, ...]:  # fmt: skip
    return ("H", f"A{number}", worker, status, seconds, hit, *places, "a note")


def test_a_hit_names_no_model_and_holds_the_answers_as_safe_ascii(tmp_path: Path) -> None:
    _, out = written(tmp_path, answers={0: HOSTILE})
    raw = (out / "hits.csv").read_bytes() + (out / "hit.html").read_bytes()
    assert raw.isascii()
    assert not [name for name in NAMES if name.encode() in raw]
    first = table(out / "hits.csv")[0]
    answer = next(first[side] for side in ("left", "right") if "bold" in first[side])
    assert "<script" not in answer
    assert "$" not in answer  # the site would look for a variable
    assert "&#128512;" in answer
    assert "<strong>bold</strong>" in answer


def test_the_page_asks_for_every_column_and_every_criterion(tmp_path: Path) -> None:
    _, out = written(tmp_path)
    page = (out / "hit.html").read_text()
    for column in ("instruction", "input", "left", "right"):
        assert page.count("${" + column + "}") == 1
    for criterion in ("helpful", "honest", "harmless"):
        assert page.count(f'name="{criterion}"') == 3
    assert "http://" not in page
    assert "https://" not in page
    assert list(table(out / "hits.csv")[0]) == ["hit", "instruction", "input", "left", "right"]


def test_results_become_votes_by_model(tmp_path: Path) -> None:
    run, out = written(tmp_path, 8)
    key = {line["hit"]: line for line in table(out / "key.csv")}
    assert {line["left"] for line in key.values()} == set(NAMES)  # sides were drawn
    file = results(tmp_path / "r.csv", *(row(hit, n) for n, hit in enumerate(key)))
    run_import(run, file)
    votes = {str(vote.pair): vote for vote in votes_in(run)}
    assert len(votes) == 8
    for line in key.values():
        vote = votes[line["pair"]]
        left, right = ("a", "b") if line["left"] == NAMES[0] else ("b", "a")
        assert (vote.helpful, vote.honest, vote.harmless, vote.left) == (left, "tie", right, left)
        assert (vote.annotator, vote.seconds, vote.note) == ("W1", 42.0, "a note")


def test_bad_rows_are_counted_and_said_and_nothing_is_taken_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = written(tmp_path)
    hits = [line["hit"] for line in table(out / "hits.csv")]
    file = results(
        tmp_path / "r.csv",
        row(hits[0], 1),
        row(hits[0], 2, "W2"),
        row("of another run", 3),
        row(hits[1], 4, places=("left", "", "right")),
        row(hits[1], 5, places=("left", "both", "right")),
        row(hits[1], 6, worker=" "),
        row(hits[1], 7, seconds="soon"),
        row(hits[1], 8, status="Rejected"),
    )
    run_import(run, file)
    said = capsys.readouterr()
    assert (
        "2 votes imported, 0 were here already, 1 rejected by the requester, 5 bad rows; 2 votes" in said.out
    )
    assert "line 4 of" in said.err
    assert "is not one of this run's" in said.err
    run_import(run, file)
    assert "0 votes imported, 2 were here already" in capsys.readouterr().out
    assert len(votes_in(run)) == 2


def test_what_is_no_table_of_results_is_refused(tmp_path: Path) -> None:
    run, _ = written(tmp_path)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("name,value\nx,1\n")
    with pytest.raises(UsageError, match=r"no row of .*wrong\.csv could be used"):
        run_import(run, wrong)
    with pytest.raises(DistillError, match=r"missing\.csv"):
        run_import(run, tmp_path / "missing.csv")
    with pytest.raises(DistillError, match="no votes in"):
        run_import(tmp_path / "nowhere", wrong)
