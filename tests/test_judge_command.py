"""`evaluate judge` and `evaluate ranking`, from files and from a run, as people and programs use them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from evaluators.judge.command import JudgeOptions, run_judge, run_ranking, with_more
from evaluators.judge.metrics import isotonic, ranking_report
from evaluators.judge.reviews import ReviewSource
from evaluators.judge.show import sums
from store.errors import PoolError, RunFolderError, UsageError
from tests.support.cli import distill, write_pool
from tests.support.judging import Judge, review, said, written
from tests.support.scripted import scripted

Row = dict[str, Any]
HOSTILE = "[bold]x[/bold]\x1b[31m\u202e=cmd()"


def told(capsys: pytest.CaptureFixture[str], asked: JudgeOptions, **files: Path) -> Row:
    assert run_judge(asked, True, files.get("csv"), files.get("rows")) == 0
    found: Row = orjson.loads(capsys.readouterr().out)
    return found


def reviews(folder: Path, name: str, scores: Sequence[str]) -> Path:
    return written(folder / f"{name}.jsonl", [review(n, text) for n, text in enumerate(scores, 1)])


async def test_files_become_one_object_through_the_front_door(tmp_path: Path) -> None:
    one = reviews(tmp_path, "x_vs_y", ["8 9\nGood.", "7 7", "What?"])
    other = reviews(tmp_path, "z_vs_y", ["9 6", "9 5", "9 9"])
    ended = await distill("evaluate", "judge", "--reviews", one, other, "--json")
    assert ended.code == 0, ended.err
    found = orjson.loads(ended.out)
    names = ("a", "b", "questions", "unparsed", "sum_a", "sum_b", "wins", "ties", "losses")
    assert [[pair[name] for name in names] for pair in found["pairs"]] == [
        ["x", "y", 3, 1, 15, 16, 0, 1, 1],
        ["z", "y", 3, 0, 27, 20, 2, 1, 0],
    ]
    assert found["pairs"][0]["low"] <= found["pairs"][0]["relative"] <= found["pairs"][0]["high"]


async def test_bad_input_ends_with_words_and_2(tmp_path: Path) -> None:
    ended = await distill("evaluate", "judge", "--reviews", tmp_path / "missing.jsonl")
    assert (ended.code, ended.out) == (2, "")
    assert "missing.jsonl" in ended.err


def test_what_cannot_be_asked_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reviews(tmp_path, "x_vs_y", ["8 9"])
    with pytest.raises(UsageError, match="name the rank groups: --reviews FILE for each, or --run RUN"):
        run_ranking(JudgeOptions(), False, None, None)
    with pytest.raises(UsageError, match="name what was judged"):
        told(capsys, JudgeOptions())
    with pytest.raises(UsageError, match="--scores both: unknown; choose from file, text"):
        told(capsys, JudgeOptions(reviews=[path], scores="both"))
    with pytest.raises(UsageError, match="--stage chooses among the stages"):
        told(capsys, JudgeOptions(reviews=[path], stages=["judge"]))
    with pytest.raises(RunFolderError):
        told(capsys, JudgeOptions(runs=[tmp_path / "nowhere"]))
    with pytest.raises(UsageError, match="two or more rank groups; found 1"):
        run_ranking(JudgeOptions(reviews=[path]), False, None, None)


@pytest.mark.parametrize("role", ["judge", "score", "compare"])
async def test_empty_answers_are_compared_and_none_is_lost(tmp_path: Path, role: str) -> None:
    """A student that said nothing must not do better for it."""
    questions = write_pool(tmp_path / "q.jsonl", [{"id": n, "instruction": f"{n}?"} for n in range(4)])
    texts = ["", "   ", "\n", "long enough"]
    weak = write_pool(tmp_path / "weak.jsonl", [{"id": n, "text": text} for n, text in enumerate(texts)])
    good = write_pool(tmp_path / "good.jsonl", [{"id": n, "text": "abcd"} for n in range(4)])
    files = (weak, good) if role == "score" else ("--answers", weak, "--against", good)
    judge, run = Judge(), tmp_path / "run"
    async with scripted(judge.answer) as url:
        flags = ("--questions", questions, "--run", run, "--base-url", url, "--model", "m")
        asked = await distill(role, *files, *flags)
    assert asked.code == 0, asked.err
    assert len(judge.asked) == (8 if role == "compare" else 4)
    out = tmp_path / "out.jsonl"
    form = {"judge": "reviews", "score": "scores", "compare": "comparisons"}[role]
    assert (await distill("export", run, "--format", form, "--out", out)).code == 0
    assert len(out.read_bytes().splitlines()) == 4


async def test_a_runs_verdicts_are_read_from_its_replies(tmp_path: Path) -> None:
    questions = [
        {"id": n, "instruction": f"Question {n}?", "category": "math" if n else "x"} for n in range(4)
    ]
    pool = write_pool(tmp_path / "q.jsonl", questions)
    short = write_pool(tmp_path / "short.jsonl", [{"id": n, "text": "ab"} for n in range(4)])
    long = write_pool(tmp_path / "long.jsonl", [{"id": n, "text": "abcd" + "e" * n} for n in range(4)])
    judge, run = Judge(), tmp_path / "run"
    judge.says = lambda text: "I cannot say." if "Question 2?" in text else None
    async with scripted(judge.answer) as url:
        flags = ("--questions", pool, "--answers", short, "--against", long, "--run", run, "--both-orders")
        asked = await distill("judge", *flags, "--base-url", url, "--model", "m", "--attempts-parse", 1)
    assert asked.code == 1, asked.err
    ended = await distill("evaluate", "judge", "--run", run, "--json", "--rows", tmp_path / "rows.jsonl")
    assert ended.code == 0, ended.err
    found = orjson.loads(ended.out)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["judge"]) == ("short", "long", "m")
    assert (pair["questions"], pair["replies"], pair["unparsed"]) == (4, 8, 2)
    assert (pair["sum_a"], pair["sum_b"]) == (12, 32)
    assert (pair["wins"], pair["losses"]) == (0, 3)
    assert pair["position_bias"]["consistent"] == 1
    assert (pair["balanced"]["sum_a"], pair["balanced"]["sum_b"]) == (6, 16)
    assert [part["category"] for part in pair["by_category"]] == ["x", "math"]
    assert found["sources"] == [
        {"name": "judge", "replies": 8, "bad_rows": 0, "bad_shown": [], "unanswered": 0}
    ]
    rows = [orjson.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    assert [row["shown_first"] for row in rows[:2]] == ["short", "long"]
    assert (rows[0]["lengths"], rows[0]["reason"]) == ([2, 4], "2 4\nLook at the length.")
    assert rows[0]["prompt"] == "Question 0?"
    ended = await distill("evaluate", "judge", "--run", run, "--stage", "other")
    assert ended.code == 2
    assert "stages with judges are: judge" in ended.err


def test_the_table_reads_like_the_paper_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    paths = [reviews(tmp_path, "x_vs_y", ["8 10", "1 5"]), reviews(tmp_path, "z_vs_y", ["9 9", "What?"])]
    run_judge(JudgeOptions(reviews=paths), False, None, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "against y"
    assert lines[2].split() == ["z", "9", ":", "9", "=", "100%", "[100,", "100]", "0", "1", "0"]
    assert lines[3].split()[:6] == ["x", "9", ":", "15", "=", "60%"]
    assert "1 of 2 replies could not be read" in " ".join(lines)


def test_a_large_sum_is_written_out() -> None:
    figures = {"sum_a": 123456.0, "sum_b": 98765.5, "relative": 1.25, "low": 1.2, "high": 1.3}
    assert sums(figures) == "123,456 : 98,765.5 = 125% [120, 130]"


def test_unusable_lines_are_told_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "x_vs_y.jsonl", [review(1, "8 9"), {"text": "7 7"}])
    (source,) = told(capsys, JudgeOptions(reviews=[path]))["sources"]
    assert (source["bad_rows"], source["bad_shown"]) == (1, ["line 2: not a review: it has no question_id"])
    run_judge(JudgeOptions(reviews=[path]), False, None, None)
    assert "x_vs_y: unusable and left out 1: line 2: not a review" in capsys.readouterr().out


def test_hostile_names_stay_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [review(n, "8 9", models=[HOSTILE, "=y"], category=HOSTILE, judge=HOSTILE) for n in range(3)]
    path = written(tmp_path / "reviews.jsonl", rows)
    run_judge(JudgeOptions(reviews=[path]), False, tmp_path / "figures.csv", None)
    shown = capsys.readouterr().out
    assert shown.count("[bold]x[/bold]�[31m�=cmd()") == 4  # judge, model, the category's row and its column
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    with (tmp_path / "figures.csv").open(newline="") as file:
        whole, part = csv.DictReader(file)
    assert (whole["a"], whole["b"], whole["category"], part["category"]) == (HOSTILE, "'=y", "", HOSTILE)
    assert (whole["sum_a"], whole["sum_b"]) == ("24.0", "27.0")


def test_questions_bring_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reviews(tmp_path, "x_vs_y", ["8 9", "7 9"])
    questions = written(
        tmp_path / "q.jsonl", [{"question_id": n, "text": "Why?", "category": f"c{n}"} for n in (1, 2)]
    )
    (pair,) = told(capsys, JudgeOptions(reviews=[path], questions=questions))["pairs"]
    assert [part["category"] for part in pair["by_category"]] == ["c1", "c2"]
    others = written(tmp_path / "other.jsonl", [{"question_id": 9, "text": "Why?"}])
    with pytest.raises(UsageError, match="none of the questions of x_vs_y"):
        told(capsys, JudgeOptions(reviews=[path], questions=others))


def test_judges_are_named_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    paths = [
        reviews(tmp_path, "x_vs_y", ["8 9", "9 3"]),
        reviews(tmp_path / "other", "x_vs_y", ["7 9", "3 9"]),
    ]
    found = told(capsys, JudgeOptions(reviews=paths, judges=("one", "two")))
    assert [pair["judge"] for pair in found["pairs"]] == ["one", "two"]
    assert found["judges"]["agreement"][0]["same_winner"] == 0.5
    with pytest.raises(UsageError, match="1 judges for 2 files"):
        told(capsys, JudgeOptions(reviews=paths, judges=("one",)))


def test_files_without_a_flag_belong_to_the_one_before() -> None:
    x, y, z = Path("x"), Path("y"), Path("z")
    assert with_more([x], [], [y, z]) == ([x, y, z], [])
    assert with_more([], [x], [y]) == ([], [x, y])
    with pytest.raises(UsageError, match="say what z is"):
        with_more([x, y], [], [z])


def groups(*margins: float, count: int = 30) -> list[ReviewSource]:
    """Rank groups: the answers of rank n are `margins[n]` points above the opponent's."""
    return [
        ReviewSource(
            f"rank{n}", [said(q, (5 + margin + q % 3, 5 + q % 2), a=f"rank{n}") for q in range(count)]
        )
        for n, margin in enumerate(margins, 1)
    ]


def test_ranks_that_fall_are_monotone() -> None:
    found = ranking_report(groups(2, 1, 0, -1))
    assert [group["name"] for group in found["groups"]] == ["rank1", "rank2", "rank3", "rank4"]
    assert (found["opponent"], found["monotone"], found["spearman"], found["violation"]) == (
        "theirs",
        True,
        -1,
        0,
    )
    assert found["monotone_share"] == found["first_over_last"]["probability"] == 1
    relative = [group["relative"] for group in found["groups"]]
    assert found["isotonic"] == pytest.approx(relative)
    (mean,) = found["baselines"]
    assert mean["name"] == "mean over ranks"
    assert mean["relative"] == pytest.approx(sum(relative) / 4)
    assert mean["questions"] == 30


def test_ranks_that_do_not_fall_are_told() -> None:
    found = ranking_report(groups(0, 1, 0))
    assert not found["monotone"]
    assert found["violation"] > 0.05
    gap = found["first_over_last"]
    assert (gap["difference"], gap["low"], gap["high"], gap["probability"]) == (0, 0, 0, 0)
    assert isotonic([1.0, 2.0, 0.0]).tolist() == [1.5, 1.5, 0]


def test_ranks_are_in_the_order_of_their_numbers() -> None:
    ten = groups(*range(10, 0, -1))
    assert [group["name"] for group in ranking_report(sorted(ten, key=lambda s: s.name))["groups"]] == [
        f"rank{n}" for n in range(1, 11)
    ]


def test_a_question_that_a_rank_lacks_counts_in_neither_of_its_sums() -> None:
    one, two = groups(1, 0)
    found = ranking_report([one, ReviewSource("rank2", two.judgements[:20])])
    assert [group["questions"] for group in found["groups"]] == [30, 20]
    relative = [group["relative"] for group in found["groups"]]
    assert found["isotonic"] == pytest.approx(relative)


def test_rank_groups_have_one_opponent_and_one_judge() -> None:
    one, two = groups(1, 0)
    with pytest.raises(UsageError, match="the same judge"):
        ranking_report([one, ReviewSource("x", [said(1, (5, 5), a="rank2", judge="claude")])])
    with pytest.raises(UsageError, match="no score could be read in the reviews of 'rank3'"):
        ranking_report([one, two, ReviewSource("x", [said(1, None, a="rank3")])])


def test_a_ranking_is_told_with_its_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    best, worst = reviews(tmp_path, "best_vs_y", ["9 8"] * 5), reviews(tmp_path, "worst_vs_y", ["4 8"] * 5)
    first = reviews(tmp_path, "first_vs_y", ["8 8"] * 5)
    asked = JudgeOptions(reviews=[best, worst], baselines=[first])
    assert run_ranking(asked, False, tmp_path / "ranks.csv", tmp_path / "rows.jsonl") == 0
    assert len((tmp_path / "rows.jsonl").read_bytes().splitlines()) == 15
    out = capsys.readouterr().out
    assert "45 : 40 = 112% [112, 112]" in out
    assert "rank 1 over the last: +62.5 points" in out
    with (tmp_path / "ranks.csv").open(newline="") as file:
        names = [(row["rank"], row["name"], row["relative"]) for row in csv.DictReader(file)]
    assert names == [
        ("1", "best", "1.125"),
        ("2", "worst", "0.5"),
        ("", "mean over ranks", "0.8125"),
        ("", "first", "1.0"),
    ]


@pytest.mark.parametrize("score", ["1" + "0" * 400, "1e308", "NaN", "-2"])
def test_a_score_on_no_scale_is_a_bad_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], score: str
) -> None:
    path = reviews(tmp_path, "x_vs_y", ["8 9"])
    with path.open("a") as file:
        file.write(f'{{"question_id": 2, "text": "no", "score": [{score}, 7]}}\n')
    found = told(capsys, JudgeOptions(reviews=[path]))
    assert (found["pairs"][0]["sum_a"], found["sources"][0]["bad_rows"]) == (8.0, 1)
    assert "line 2: score is not two numbers from 0 to 1,000,000" in found["sources"][0]["bad_shown"][0]


def test_an_empty_file_of_reviews_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x_vs_y.jsonl"
    path.write_bytes(b"")
    with pytest.raises(PoolError, match=r"no usable review in .*it is empty"):
        told(capsys, JudgeOptions(reviews=[path]))
