"""recipes/rlhf.toml: priced as it is written, and all the way with a tiny student and a scripted teacher."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.support.cli import ROOT, distill, environment, write_pool

RECIPE = ROOT / "recipes" / "rlhf.toml"
TRAINED = ("student", "reward", "dpo", "rloo")
FEW = {
    "student": "batch = 4\nepochs = 1\nmax_length = 400\nsamples = 1",
    "reward": "batch = 4\nepochs = 1\nmax_length = 400",
    "dpo": "batch = 4\nmax_length = 400\nsamples = 2",
    "rloo": "batch = 4\ngroup = 2\nanswer_tokens = 12\nmax_length = 400\nsamples = 2",
}


def laid_out(folder: Path) -> Path:
    """The recipe beside stand-ins for its files, as a user lays them out."""
    (folder / "recipes").mkdir()
    (folder / "data").mkdir()
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "x"} for n in range(12)]
    (folder / "data" / "alpaca_data.json").write_text(json.dumps(rows))
    questions = [{"question_id": n, "text": f"Why {n}?", "category": "generic"} for n in range(2)]
    write_pool(folder / "data" / "vicuna-questions.jsonl", questions)
    path = folder / "recipes" / RECIPE.name
    path.write_text(RECIPE.read_text())
    return path


async def test_it_is_priced_as_it_is_written(tmp_path: Path) -> None:
    words = ("run", laid_out(tmp_path), "--run", tmp_path / "run", "--dry-run", "--json")
    ended = await distill(*words, env=environment(OPENAI_API_KEY="x"))
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    assert [name for name in plan["steps"] if name in TRAINED] == [*TRAINED]
    assert plan["total"]["requests"] > 12


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_it_runs_all_the_way(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (requirements/trl.txt)")
    from tests.support import tiny

    path, run = laid_out(tmp_path), tmp_path / "run"
    text = re.sub(r"^(zero|nproc) = \d\n", "", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r'(?s)model = "gpt-5.1".*?tpm = 1_000_000', 'serve = "scripted"', text)
    text = text.replace("huggyllama/llama-7b", str(tiny.student(tmp_path / "pupil")))
    text = text.replace("sample = 5000", "sample = 10").replace("max_tokens = 1024", "max_tokens = 12")
    text = text.replace("temperature = ", "max_tokens = 12\ntemperature = ")
    for name, flags in FEW.items():
        text = re.sub(rf"(\[step\.{name}\][^\n]*\n)", rf'\1precision = "fp32"\n{flags}\n', text)
    path.write_text(text)
    words = [sys.executable, "-P", "-m", "engine", "run", str(path), "--run", str(run), "--quiet", "--json"]
    ended = subprocess.run(words, cwd=ROOT, env=tiny.env(), capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    told = orjson.loads(ended.stdout)
    assert {name: step["state"] for name, step in told["steps"].items()}.keys() >= {*TRAINED, "wins-dpo"}
    for name in TRAINED:
        assert (run / "steps" / name / "model.safetensors").is_file()
    assert "Reward against length" in (run / "steps" / "report" / "report.html").read_text()
    assert json.loads((run / "evaluations" / "wins-rloo.json").read_bytes())["pairs"]
