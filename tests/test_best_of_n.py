"""From a pool to rank groups: a student's five answers, a reward model's order, files that a judge takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from engine.export import ExportOptions, run_export
from engine.tasks.datasets import comparison_line, comparisons
from store.answers import Answers
from store.records import Contest
from tests.support import tiny
from tests.support.cli import ROOT
from tests.support.student import served
from trainers.rank import run_rank, split

pytestmark = pytest.mark.filterwarnings("default")
SAMPLES = 5


def distill(*words: object) -> None:
    command = [sys.executable, "-P", "-m", "engine", *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, env=tiny.env(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_five_samples_are_ranked_and_each_rank_is_a_file_of_answers(
    pupil: Path, reward: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [{**row, "output": ""} for row in tiny.rows(4)]
    pool.write_bytes(b"".join(orjson.dumps({**row, "id": f"q{n}"}) + b"\n" for n, row in enumerate(rows)))
    run, out = tmp_path / "run", tmp_path / "candidates.jsonl"
    with served(pupil) as place:
        teacher = ["--base-url", place.url, "--model", place.model, "--max-tokens", 15]
        distill("generate", pool, "--run", run, "--samples", SAMPLES, "--quiet", *teacher)
    run_export(run, out, ExportOptions("candidates"))
    found = lines(out)
    assert [row["id"] for row in found] == ["q0", "q1", "q2", "q3"]
    assert [row["prompt"] for row in found] == [prompt_of_comparison(row) for row in rows]
    for row in found:
        assert isinstance(row["candidates"], list)
        assert len(set(row["candidates"])) == SAMPLES  # no seed: each is drawn anew
    ranked, groups = tmp_path / "ranked.jsonl", tmp_path / "groups"
    assert run_rank(reward, out, ranked, True, groups) == 0
    files = [groups / f"rank{place}.jsonl" for place in range(1, SAMPLES + 1)]
    joined = Answers(files, None, pool)
    assert joined.names == ["rank1", "rank2", "rank3", "rank4", "rank5"]
    for row, answered in zip(lines(ranked), joined, strict=True):
        by_rank = [row["candidates"][place] for place in row["order"]]  # type: ignore[index,attr-defined]
        assert list(answered.answers.values()) == by_rank
        assert row["scores"][row["order"][0]] == max(row["scores"])  # type: ignore[index,call-overload]
    assert not list(joined.bad_rows())


def prompt_of_comparison(row: dict[str, str]) -> str:
    """As the reward model has seen prompts in its training."""
    contest = Contest("x", row["instruction"], row["input"], "", ("a", "b"), ("1", "2"), (0, 1))
    (pair,) = comparisons([(contest, (3.0, 1.0))])
    return str(comparison_line(pair)["user_input"])


def test_a_row_with_fewer_candidates_is_missing_from_the_last_groups(tmp_path: Path) -> None:
    ranked = tiny.write(
        tmp_path / "ranked.jsonl",
        [{"id": 1, "candidates": ["a", "b"], "order": [1, 0]}, {"id": 2, "candidates": ["c"], "order": [0]}],
    )
    split(ranked, tmp_path)
    assert lines(tmp_path / "rank1.jsonl") == [{"id": 1, "text": "b"}, {"id": 2, "text": "c"}]
    assert lines(tmp_path / "rank2.jsonl") == [{"id": 1, "text": "a"}]
