"""`import distill`: calls that do what the commands do, wherever they are called from."""

from __future__ import annotations

import ast
import asyncio
import builtins
import gc
import inspect
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow.parquet
import pytest

import distill
from engine.collect.build_settings import engine_fields
from engine.collect.setting_fields import TASKS
from engine.collect.stopping import DRAIN_SECONDS
from store.errors import installed
from tests.support.cli import KEY, MODEL, ROOT, environment, rows, until, write_pool
from tests.support.judging import Judge
from tests.support.library import FREE, apart, generate, served
from tests.support.provider import Config, Provider
from tests.support.scripted import scripted


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with served() as found:
        yield found


# Calls.


def test_a_call_asks_and_its_answers_are_read(provider: Provider, tmp_path: Path) -> None:
    result = generate(provider, tmp_path / "run")
    assert (result.done, result.failed, result.bad_rows, result.stage) == (5, {}, 0, "generate")
    found = list(distill.answers(result))
    assert [row["instruction"] for row in found] == [row["instruction"] for row in rows(5)]
    assert all(row["output"] and row["outcome"] == "stop" and row["model"] for row in found)
    assert distill.status(result)["stages"]["generate"]["done"] == 5


def test_a_file_is_a_pool_and_equal_calls_ask_once(provider: Provider, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(4))
    generate(provider, tmp_path / "run", pool)
    again = generate(provider, tmp_path / "run", (row for row in rows(6)))
    assert (again.done, provider.counts.requests) == (6, 6)


def test_it_can_be_called_where_a_loop_is_running(provider: Provider, tmp_path: Path) -> None:
    async def cell() -> distill.Result:
        return generate(provider, tmp_path / "run")

    assert asyncio.run(cell()).done == 5


async def test_a_coroutine_does_not_hold_up_its_loop(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async with Provider(Config(latency=0.2)).running() as p:  # on this loop
        ticking = asyncio.ensure_future(tick())
        pool = rows(3)
        found = await distill.agenerate(pool, run=tmp_path / "run", base_url=p.base_url, **FREE)
        ticking.cancel()
    assert found.done == 3
    assert ticks > 5


async def test_several_runs_at_the_same_time(tmp_path: Path) -> None:
    before = gc.get_threshold()
    async with Provider().running() as p:
        found = await asyncio.gather(
            *(
                distill.agenerate(rows(3, name), run=tmp_path / name, base_url=p.base_url, **FREE)
                for name in ("a", "b")
            )
        )
    assert [result.done for result in found] == [3, 3]
    assert gc.get_threshold() == before  # runs set the collector, and set it back


def test_a_pool_is_translated(provider: Provider, tmp_path: Path) -> None:
    result = distill.translate(
        rows(2), run=tmp_path / "run", to="German", limit=1, base_url=provider.base_url, **FREE
    )
    assert result.stage == "translate"


# Progress.


def test_progress_is_told_to_the_end(provider: Provider, tmp_path: Path) -> None:
    seen: list[distill.Progress] = []
    generate(provider, tmp_path / "run", progress=seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].stage) == (5, 5, "generate")


def test_what_a_callback_raises_stops_the_run_and_arrives(tmp_path: Path) -> None:
    def stop(progress: distill.Progress) -> None:
        if progress.done:
            raise ValueError("enough")

    with served(Config(latency=0.3)) as p:
        with pytest.raises(ValueError, match="enough"):
            generate(p, tmp_path / "run", rows(400), progress=stop, concurrency=4)
        assert 0 < distill.status(tmp_path / "run")["stages"]["generate"]["done"] < 400


# What is wrong.


def test_it_says_what_the_command_line_says(provider: Provider, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for settings, words in (
        ({"rpm": 0}, "^--rpm 0: must be greater than 0$"),
        ({"reuse": True, "replace": True}, "^--reuse keeps answers, --replace asks them again"),
        ({"api_key_env": "NO_SUCH_KEY"}, "^--api-key-env NO_SUCH_KEY: this variable is not set"),
        ({"temprature": 1}, "^generate has no setting temprature; did you mean temperature?"),
        ({"both_orders": True}, "^generate has no setting both_orders; it has "),
        ({"pool": tmp_path / "none.jsonl"}, "^cannot read pool .*none.jsonl: No such file"),
        ({"pool": []}, "^no usable row in pool pool.jsonl"),
        ({"pool": [{"instruction": {1, 2}}]}, "^pool.jsonl: row 1 cannot be written as JSON: "),
    ):
        with pytest.raises(distill.UsageError, match=words):
            generate(provider, run, **settings)
    assert provider.counts.requests == 0


def test_a_bad_row_is_left_out_and_counted(provider: Provider, tmp_path: Path) -> None:
    result = generate(provider, tmp_path / "run", [*rows(2), {"prompt": "?"}, "text"])
    assert (result.done, result.bad_rows) == (2, 2)


def test_nothing_is_asked_on_the_terminal(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    paid = {"price_in": 1, "price_out": 1}
    with pytest.raises(distill.UsageError, match=r"this run costs money .*--budget USD, or agree with --yes"):
        generate(provider, tmp_path / "run", **paid)
    assert generate(provider, tmp_path / "run", budget=1, **paid).cost_usd > 0
    with pytest.raises(distill.UsageError, match="already have an answer under other settings"):
        generate(provider, tmp_path / "run", yes=True, temperature=0.5, **paid)
    assert generate(provider, tmp_path / "run", yes=True, temperature=0.5, replace=True, **paid).done == 5


def test_a_budget_stops_the_run_and_more_continues_it(provider: Provider, tmp_path: Path) -> None:
    paid = {"price_in": 100, "price_out": 100, "max_tokens": 100, "concurrency": 1}
    with pytest.raises(distill.DistillError, match="budget") as stopped:
        generate(provider, tmp_path / "run", rows(50), budget=0.05, **paid)
    assert stopped.value.exit_code == 3
    before = provider.counts.requests
    assert generate(provider, tmp_path / "run", rows(50), budget=50, **paid).done == 50
    assert provider.counts.requests == 50 > before


def test_rows_that_fail_are_told_by_cause(tmp_path: Path) -> None:
    with served(Config(poison="row 1.")) as p:
        result = generate(p, tmp_path / "run")
    assert result.done == 4
    assert sum(result.failed.values()) == 1
    (failure,) = distill.failures(result)
    assert (failure["stage"], failure["id"], failure["status"]) == ("generate", "1", 400)
    assert list(distill.failures(result, cause="timeout")) == []


# Stopping.


async def test_a_cancelled_coroutine_keeps_what_was_paid_and_continues(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look(progress: distill.Progress) -> None:
        if progress.done:
            loop.call_soon_threadsafe(begun.set)

    async with Provider(Config(latency=0.2)).running() as p:
        asked = {"base_url": p.base_url, **FREE, "concurrency": 4}
        running = asyncio.create_task(distill.agenerate(rows(100), run=run, **{**asked, "progress": look}))
        await asyncio.wait_for(begun.wait(), 30)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        told = distill.status(run)  # the folder is free, and nothing was lost
        assert told["unanswered"] == 0
        assert 0 < told["stages"]["generate"]["done"] < 100
        p.control(latency=0)
        assert (await distill.agenerate(rows(100), run=run, **asked)).done == 100
        assert p.counts.requests == 100


async def test_a_second_cancel_does_not_wait_for_what_is_in_flight(tmp_path: Path) -> None:
    async with Provider(Config(latency=60)).running() as p:
        asked = distill.agenerate(rows(3), run=tmp_path / "run", base_url=p.base_url, **FREE)
        running = asyncio.create_task(asked)
        await until(lambda: p.counts.in_flight)
        running.cancel()
        await asyncio.sleep(0.1)
        assert not running.done()
        running.cancel()
        async with asyncio.timeout(DRAIN_SECONDS / 2):
            await asyncio.wait([running])
    assert running.cancelled()
    assert distill.status(tmp_path / "run")["unanswered"] == 1


async def test_a_cancel_in_a_signal_handler_is_heard_while_the_loop_sleeps(tmp_path: Path) -> None:
    """Notebooks do so, and the handler does not wake the loop."""
    loop = asyncio.get_running_loop()
    with served(Config(latency=0.5)) as p:
        begun, asked = loop.time(), {"base_url": p.base_url, **FREE, "concurrency": 1}
        running = asyncio.create_task(distill.agenerate(rows(60), run=tmp_path / "run", **asked))
        before = signal.signal(signal.SIGALRM, lambda *_: running.cancel())
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            await asyncio.wait([running])
        finally:
            signal.signal(signal.SIGALRM, before)
    assert running.cancelled()
    assert loop.time() - begun < 15


INTERRUPTED = """
import sys, distill
def look(progress):
    if progress.done: print("begun", flush=True)
pool = [{"instruction": f"Tell me about row {n}."} for n in range(100)]
try:
    distill.generate(pool, run=sys.argv[1], base_url=sys.argv[2], model="gpt-4", price_in=0, price_out=0,
                     concurrency=4, progress=look)
except KeyboardInterrupt:
    print("interrupted", distill.status(sys.argv[1])["unanswered"])
"""


async def test_an_interrupt_is_a_keyboard_interrupt_when_what_is_in_flight_has_come(tmp_path: Path) -> None:
    async with Provider(Config(latency=0.2)).running() as p:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", INTERRUPTED, str(tmp_path / "run"), p.base_url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert process.stdout
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (out.splitlines()[-1], err) == (b"interrupted 0", b"")


# What became of it.


async def test_answers_of_several_models_are_scored_compared_and_judged(tmp_path: Path) -> None:
    long, short = ([{**row, "output": says} for row in rows(3)] for says in ("A long answer.", "Short."))
    async with scripted(Judge().answer) as url:
        asked: dict[str, Any] = {"run": tmp_path / "run", "base_url": url, **FREE}
        scored = await distill.ascore({"long": long, "short": short}, **asked)
        compared = await distill.acompare(long, short, names=["long", "short"], **asked)
        judged = await distill.ajudge(long, short, names=["long", "short"], **asked)
    assert (scored.done, compared.done, judged.done) == (3, 6, 3)
    for result in (scored, compared):
        assert [row["completion_a"] for row in distill.answers(result, format="comparisons")] == 3 * [
            "A long answer."
        ]
    assert [row["score"] for row in distill.answers(judged)] == 3 * [[10, 6]]


def test_answers_are_those_that_export_writes(provider: Provider, tmp_path: Path) -> None:
    result = generate(provider, tmp_path / "run")
    for format in ("alpaca", "chat", "candidates"):
        out = tmp_path / f"{format}.jsonl"
        assert distill.export(result, out, format=format) == 5
        written = [orjson.loads(line) for line in out.read_bytes().splitlines()]
        assert written == list(distill.answers(result, format=format))
    table = tmp_path / "answers.parquet"
    distill.export(result, table)
    assert pyarrow.parquet.read_table(table).to_pylist() == list(distill.answers(result))
    with pytest.raises(distill.UsageError, match=r"^--format reviews: stage 'generate' "):
        distill.answers(result, format="reviews")  # at once, not with the first row
    with pytest.raises(distill.RunFolderError, match=r"^no ledger in "):
        distill.answers(tmp_path)


def test_a_damaged_answer_is_warned_of(provider: Provider, tmp_path: Path) -> None:
    result = generate(provider, tmp_path / "run")
    with sqlite3.connect(result.run / "ledger.db") as db:
        db.execute("UPDATE bodies SET raw = substr(raw, 2) WHERE response = 1")
    db.close()
    with pytest.warns(UserWarning, match="damaged"):
        assert len(list(distill.answers(result))) == 4


@pytest.mark.parametrize(("call", "package"), [("to_pandas", "pandas"), ("to_dataset", "datasets")])
def test_tables_of_other_libraries(
    call: str, package: str, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = generate(provider, tmp_path / "run")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(distill.UsageError, match=f"needs {package}, .* pip install {package}$"):
        getattr(distill, call)(result)
    table = SimpleNamespace(DataFrame=list, Dataset=SimpleNamespace(from_list=list))
    monkeypatch.setitem(sys.modules, package, table)
    assert getattr(distill, call)(result) == list(distill.answers(result))


def test_a_data_frame_is_a_pool(provider: Provider, tmp_path: Path) -> None:
    class Frame:  # as pandas has it
        def __iter__(self) -> Iterator[str]:
            return iter(["instruction"])

        def itertuples(self) -> None: ...

        def to_dict(self, shape: str) -> list[dict[str, Any]]:
            assert shape == "records"
            return rows(3)

    assert generate(provider, tmp_path / "run", Frame()).done == 3


def test_an_estimate_costs_nothing(tmp_path: Path) -> None:
    told = distill.estimate(rows(100), model=MODEL, price_in=1, price_out=2, rpm=60)
    assert (told.requests, told.bound_by) == (100, "requests")
    assert told.cost_usd is not None
    assert told.cost_usd.low < told.cost_usd.expected < told.cost_usd.high
    distill.estimate(rows(1), model=MODEL, api_key_env="NO_SUCH_KEY")  # nothing is sent
    with pytest.raises(distill.UsageError, match=r"^estimate has no setting batch_tokens"):
        distill.estimate(rows(1), model=MODEL, batch_tokens=1)


# Trainers and evaluators.

evaluates = pytest.mark.skipif(not installed("evaluate"), reason="the extra `evaluate` is not installed")


@evaluates
def test_evaluations_are_those_of_the_command(tmp_path: Path) -> None:
    file = write_pool(tmp_path / "a.jsonl", [{**row, "output": "one two"} for row in rows(4)])
    found = distill.evaluate("lengths", file, field="output")
    assert found["data"]["a"]["words"]["mean"] == 2
    for what, settings, words in (
        ("size", {}, "^evaluate size: unknown; choose from "),
        ("lengths", {"fild": 1}, "^evaluate lengths has no setting fild"),
        ("duplicates", {"threshold": "high"}, "^evaluate duplicates: .*threshold"),
    ):
        with pytest.raises(distill.UsageError, match=words):
            distill.evaluate(what, file, **settings)


@evaluates
def test_a_report_is_written(provider: Provider, tmp_path: Path) -> None:
    result = generate(provider, tmp_path / "run")
    assert "<html" in distill.report(result, tmp_path / "report.html").read_text()


def test_a_training_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    for call in (distill.train_sft, distill.train_reward):
        with pytest.raises(distill.UsageError, match=r"^--epochs -1: must be greater than 0"):
            call("data.jsonl", model="m", out=tmp_path / "out", epochs=-1)
        with pytest.raises(distill.UsageError, match=r"^--epoch: there is no setting of this name"):
            call("data.jsonl", model="m", out=tmp_path / "out", epoch=1)


# Help.


def test_each_setting_of_a_command_is_in_the_help_and_signature_of_its_call() -> None:
    for name in (*TASKS, "estimate"):
        for call in (getattr(distill, name), getattr(distill, f"a{name}")):
            known = inspect.signature(call).parameters
            assert set(engine_fields(name)) <= set(known), name
            assert "settings" not in known
            assert "requests per minute" in (call.__doc__ or "")
    translate = inspect.signature(distill.translate).parameters
    assert (translate["stage"].default, translate["max_tokens"].default) == ("translate", 1024)


def test_all_that_is_public_is_there() -> None:
    assert all(getattr(distill, name).__doc__ for name in distill.__all__ if name != "__version__")


# Documentation.

PAGE = (ROOT / "docs" / "library.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NOT_RUN = re.findall(r"^```python notest\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@evaluates
def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page, in cells of a notebook: a loop is running."""
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}

    async def cells() -> None:
        for number, example in enumerate(EXAMPLES):
            code = compile(example, f"example {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if (waits := eval(code, said)) is not None:
                await waits

    with apart(lambda: scripted(Judge().answer)) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        asyncio.run(cells())
    assert said["result"].done == said["english"].done == 2
    assert said["compared"].done == 4
    assert (said["forecast"].already_answered, said["ran"].steps["shares"].state) == (1, "done")
    assert "--rpm 0: must be greater than 0" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_the_examples_that_are_not_run_are_calls_of_ours() -> None:
    calls = [node for text in NOT_RUN for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert len(calls) == 6
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(getattr(distill, call.func.attr)).bind(*call.args, **named)
