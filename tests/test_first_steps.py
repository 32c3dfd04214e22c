"""What somebody meets in the first hour: wrong addresses, keys that are not set, small budgets, pipes, a
recipe that sums up its judges, a folder that holds only votes."""

from __future__ import annotations

import errno
import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from engine.provider.client import Client
from engine.provider.errors import ConnectionLost
from tests.support.cli import MODEL, ROOT, asking, distill, environment, ledger, rows, write_pool
from tests.support.judging import Judge
from tests.support.provider import Config, Provider
from tests.support.recipe_files import generate as stage_of_pool
from tests.support.recipe_files import run_recipe, teacher, write_recipe
from tests.support.scripted import scripted

PAID = ("--price-in", 1, "--price-out", 1)


# Why there is no connection.


async def reason(url: str) -> str:
    async with Client(url, "sk-0123456789abcdef", 1, 5.0) as client:
        with pytest.raises(ConnectionLost) as lost:
            await client.send(b"{}", "key")
    assert not lost.value.maybe_billed
    return str(lost.value)


async def test_a_port_where_nothing_listens_is_told_in_plain_words() -> None:
    told = await reason("http://127.0.0.1:9/v1")
    assert told == "cannot connect to 127.0.0.1:9: the connection was refused; nothing listens there"


async def test_a_name_without_an_address_is_told_in_plain_words() -> None:
    told = await reason("http://teacher.invalid/v1")
    assert told == "cannot connect to teacher.invalid: this name has no address; check it, and the network"


async def test_https_where_http_is_spoken_is_told_with_what_to_do() -> None:
    async with Provider(Config()).running() as p:
        told = await reason(p.base_url.replace("http://", "https://"))
    assert "it does not speak TLS; try http:// instead of https://" in told


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (OSError(errno.ENETUNREACH, "Connect call failed ('1.2.3.4', 443)"), "network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed"), "no route to host"),
        (ssl.SSLError(1, "handshake failure"), "handshake failure"),
    ],
)
def test_what_the_system_says_comes_without_names_of_functions(cause: OSError, text: str) -> None:
    from aiohttp.client_reqrep import ConnectionKey

    from engine.provider.client import no_connection

    key: Any = ConnectionKey("api.example", 443, True, True, None, None, None)
    told = no_connection(aiohttp.ClientConnectorError(key, cause))
    assert told.startswith("api.example:443: ")
    assert text in told
    assert "Connect call" not in told


async def test_an_address_without_v1_is_named_as_such(tmp_path: Path, pool: Path) -> None:
    async with Provider(Config()).running() as p:
        bare = p.base_url.removesuffix("/v1")
        ended = await distill(*asking(pool, tmp_path / "run", bare))
    assert ended.code == 3
    assert f"an API's address ends in /v1, {bare} does not" in ended.err
    assert ledger(tmp_path / "run", "SELECT count(*) FROM failures") == [(0,)]


# Keys


async def test_a_key_that_was_named_and_is_not_set_is_bad_usage_on_loopback_too(
    tmp_path: Path, pool: Path
) -> None:
    async with Provider(Config()).running() as p:
        words = asking(pool, tmp_path / "run", p.base_url, "--api-key-env", "NO_SUCH_KEY")
        ended = await distill(*words)
        assert (ended.code, p.counts.requests) == (2, 0)
        assert "--api-key-env NO_SUCH_KEY: this variable is not set" in ended.err
        recipe = write_recipe(
            tmp_path,
            {"teacher.t": teacher(p.base_url, api_key_env="NO_SUCH_KEY"), "stage.a": stage_of_pool(pool)},
        )
        ended = await run_recipe(recipe, tmp_path / "run", "--yes")
        assert (ended.code, p.counts.requests) == (2, 0)
        assert "teacher.t.api_key_env: no API key" in ended.err
        assert "NO_SUCH_KEY is not set" in ended.err
        assert (await run_recipe(recipe, tmp_path / "run", "--dry-run")).code == 0  # asks nobody


async def test_a_server_on_loopback_needs_no_key(tmp_path: Path, pool: Path) -> None:
    env = environment()
    del env["OPENAI_API_KEY"]
    async with Provider(Config()).running() as p:
        assert (await distill(*asking(pool, tmp_path / "run", p.base_url), env=env)).code == 0


# Budgets


async def test_a_budget_far_below_the_estimate_is_said_before_anything_is_asked(
    tmp_path: Path, pool: Path
) -> None:
    async with Provider(Config()).running() as p:
        words = asking(pool, tmp_path / "run", p.base_url, *PAID)
        ended = await distill("estimate", pool, *words[4:], "--budget", 0.001)
        assert "the budget of $0.001 is enough for about" in ended.out
        assert p.counts.requests == 0
        ended = await distill(*words, "--budget", 0.001)
        assert "the budget of $0.001 is enough for about" in ended.err
        assert "is enough for" not in (await distill(*words, "--budget", 5)).err
    recipe = write_recipe(
        tmp_path,
        {
            "teacher.t": {**teacher("http://127.0.0.1:9/v1", give_up=0), "price_in": 1, "price_out": 1},
            "stage.a": stage_of_pool(pool, system="Be brief."),
        },
        budget=0.001,
    )
    ended = await distill("run", recipe, "--run", tmp_path / "other")
    assert "the budget of $0.001 is enough for about" in ended.err


# Pipes


def estimated(source: object, **options: Any) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "engine", "estimate", str(source), "--model", MODEL, "--json"]
    done = subprocess.run(command, capture_output=True, env=environment(), check=True, **options)
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def test_estimate_reads_standard_input_and_pipes(tmp_path: Path, pool: Path) -> None:
    of_file = estimated(pool)
    assert estimated("-", input=pool.read_bytes()) == of_file
    assert of_file["requests"] == 12
    shell = f"'{sys.executable}' -P -m engine estimate <(cat '{pool}') --model {MODEL} --json"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env=environment(), cwd=ROOT, check=True)
    assert orjson.loads(done.stdout) == of_file


async def test_an_empty_pipe_is_told_by_the_name_that_was_given() -> None:
    ended = await distill("estimate", "-", "--model", MODEL)
    assert ended.code == 2
    assert ended.err.strip() == "distill: no usable row in pool - (it is empty)"


# A recipe that sums up its own judges


async def test_a_step_may_sum_up_a_stage_by_its_name_and_comes_after_it(tmp_path: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "step.verdict": {"run": "evaluate judge", "stage": "judged"},
            "stage.a": stage_of_pool(pool),
            "stage.b": stage_of_pool(pool, system="Be brief."),
            "stage.judged": {"task": "judge", "teacher": "t", "answers": "a", "against": "b"},
        }
        recipe, run = write_recipe(tmp_path, tables), tmp_path / "run"
        ended = await run_recipe(recipe, run, "--json")
        assert ended.code == 0, ended.err
        assert orjson.loads(ended.out)["steps"]["verdict"]["state"] == "done"
        told = json.loads((run / "evaluations" / "verdict.json").read_text())
        assert told["pairs"][0]["questions"] == 12
        ended = await run_recipe(recipe, run, "--json")
        assert orjson.loads(ended.out)["steps"]["verdict"]["state"] == "known"
        write_pool(pool, rows(13))
        ended = await run_recipe(recipe, run, "--json")
        assert orjson.loads(ended.out)["steps"]["verdict"]["state"] == "done"
        told = json.loads((run / "evaluations" / "verdict.json").read_text())
        assert told["pairs"][0]["questions"] == 13


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"run": "evaluate judge", "stage": "none"}, "there is no stage 'none'"),
        ({"run": "evaluate judge", "stage": "a"}, "stage 'a' (generate) has no judge"),
        ({"run": "evaluate judge"}, "evaluate judge needs reviews = … or preferences = … or stage = …"),
        ({"run": "evaluate ranking"}, "evaluate ranking needs reviews = … or stage = …"),
    ],
)
async def test_what_cannot_be_summed_up_is_told_before_anything_is_asked(
    tmp_path: Path, pool: Path, step: dict[str, Any], words: str
) -> None:
    tables = {
        "teacher.t": teacher("http://127.0.0.1:9/v1"),
        "stage.a": stage_of_pool(pool),
        "step.verdict": step,
    }
    ended = await run_recipe(write_recipe(tmp_path, tables), tmp_path / "run")
    assert ended.code == 2
    assert words in ended.err
    assert "recipe.toml, line" in ended.err


async def test_shares_of_a_stage_of_the_run_itself(tmp_path: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "stage.a": stage_of_pool(pool),
            "step.shares": {"run": "evaluate shares", "stage": "a"},
        }
        ended = await run_recipe(write_recipe(tmp_path, tables), tmp_path / "run")
        assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "evaluations" / "shares.json").is_file()


# A folder that holds only votes


def test_a_report_of_votes_alone(tmp_path: Path) -> None:
    pytest.importorskip("krippendorff", reason="the extra `evaluate` is not installed")
    from evaluators.human import run_human
    from evaluators.report.build import build
    from store.votes_schema import Ballot
    from tests.support.annotating import opened

    run = tmp_path / "votes"
    with opened(run) as votes:
        ann = votes.join("Ann")
        pair = votes.next_pair(ann)
        assert pair
        votes.open(ann, pair)
        votes.cast(ann, pair, Ballot("a", "tie", "b"))
    report = build(run)
    assert [section.title for section in report.sections] == ["Human votes"]
    assert not (run / "ledger.db").exists()
    run_human(run, False, None, None)


def test_one_annotator_and_one_vote_are_not_plural(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("krippendorff", reason="the extra `evaluate` is not installed")
    test_a_report_of_votes_alone(tmp_path)
    out = capsys.readouterr().out
    assert "1 annotator;" in out
    assert "1 vote on 1 of 3 pairs" in out
    assert "Ann: 1 vote," in out


# The paper's recipe in a fresh clone


async def test_the_paper_s_plan_names_the_files_that_are_missing_and_prices_the_rest(tmp_path: Path) -> None:
    paper = ROOT / "recipes" / "gpt4-llm.toml"
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / paper.name
    recipe.write_bytes(paper.read_bytes())
    words = ["run", recipe, "--run", tmp_path / "run", "--dry-run"]
    ended = await distill(*words)
    assert ended.code == 0, ended.err
    for name in (
        "alpaca_data.json",
        "unnatural_core.jsonl",
        "vicuna-questions.jsonl",
        "opt-iml-answers.jsonl",
    ):
        assert f"data/{name}\n    " in ended.out
    assert ended.out.count("https://") >= 4
    assert "without them no stage can be priced" in ended.out

    (tmp_path / "data").mkdir()
    turn = {"question_id": 1, "category": "generic", "turns": ["How can I sleep better?"]}
    write_pool(tmp_path / "data" / "vicuna-questions.jsonl", [turn])
    told = orjson.loads((await distill(*words, "--json")).out)
    assert {"vicuna-gpt4", "vicuna-zh", "judged-zh-zh"} <= told["stages"].keys()
    assert not {"english", "comparison", "unnatural-9k"} & told["stages"].keys()
    assert told["total"]["cost_usd"]["expected"] > 0
    assert "../data/vicuna-questions.jsonl" not in told["missing"]
    alpaca = told["missing"]["../data/alpaca_data.json"]
    assert "raw.githubusercontent.com/tatsu-lab" in alpaca["where"]
    assert {"english", "chinese", "comparison"} <= set(alpaca["needed_by"])
    ended = await distill(*words)
    assert "stages without a price: " in ended.out
    assert "the rest is priced above" in ended.out
    assert not (tmp_path / "run").exists()


async def test_a_run_without_a_file_says_where_to_get_it(tmp_path: Path) -> None:
    tables = {
        "teacher.t": teacher("http://127.0.0.1:9/v1"),
        "stage.a": stage_of_pool("none.jsonl"),
        "files": {"x": "nowhere"},
    }
    recipe = write_recipe(tmp_path, tables)
    recipe.write_text(recipe.read_text().replace('x = "nowhere"', '"none.jsonl" = "https://pool.example"'))
    ended = await run_recipe(recipe, tmp_path / "run")
    assert ended.code == 2
    assert f"there is no file {tmp_path / 'none.jsonl'}; get it from https://pool.example" in ended.err
    ended = await distill("run", recipe, "--run", tmp_path / "run", "--dry-run", "--only", "a")
    assert ended.code == 0
    assert "none.jsonl\n    https://pool.example" in ended.out
