"""Results of a batch that cannot be read are fetched again; nothing is bought anew because of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from engine.batch.download import FETCHES
from tests.support import recipe_files
from tests.support.batch_files import MIB, Sent, Serve, bomb
from tests.support.batch_server import BatchServer
from tests.support.batch_work import Stored
from tests.support.batching import (
    Bench,
    assert_all_answered,
    assert_billed_once,
    assert_books_balance,
    at_risk,
)
from tests.support.cli import KEY, distill, export, rows, started, status, until, write_pool

COUNT = 20
KEPT = "SELECT b.raw FROM responses r JOIN bodies b ON b.response = r.id WHERE r.outcome = 'malformed'"


def half(raw: bytes) -> bytes:
    return raw[: raw.index(b"\n", len(raw) // 2) + 1]


def each_response(raw: bytes, response: object) -> bytes:
    """The lines of a file, with another response in each."""
    lines = [orjson.loads(line) for line in raw.splitlines()]
    return b"".join(orjson.dumps({**line, "response": response, "error": None}) + b"\n" for line in lines)


UNREADABLE: dict[str, Serve] = {
    "null bodies": lambda file, n: Sent(each_response(file.raw, {"status_code": 200, "body": None})),
    "pages as bodies": lambda file, n: Sent(each_response(file.raw, {"status_code": 200, "body": "<html>"})),
    "no status": lambda file, n: Sent(each_response(file.raw, {"status_code": 0, "body": None})),
    "no responses": lambda file, n: Sent(each_response(file.raw, None)),
    "garbage": lambda file, n: Sent(b"\x00\xff\n?" * 2000),
    "a page": lambda file, n: Sent(b"<html>\n<p>Try later.</p>\n</html>\n"),
    "another's": lambda file, n: Sent(file.raw.replace(b'"custom_id":"', b'"custom_id":"x')),
    "nothing": lambda file, n: Sent(b""),
    "cut in a line": lambda file, n: Sent(file.raw[: len(file.raw) * 3 // 5]),
    "cut in the last line": lambda file, n: Sent(file.raw[:-30]),
    "cut between lines": lambda file, n: Sent(half(file.raw)),
    "shorter than it says": lambda file, n: Sent(file.raw[:5000], length=len(file.raw)),
    "a bomb": lambda file, n: Sent(bomb(300 * MIB), encoding="gzip"),
    "not what it is packed as": lambda file, n: Sent(file.raw, encoding="gzip"),
    "without an end": lambda file, n: Sent(half(file.raw), then=b'{"tick": 1}\n' * 10_000),
    "missing": lambda file, n: Sent(b'{"error": {"message": "No such file."}}', status=404),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", UNREADABLE)
async def test_what_cannot_be_read_is_fetched_again_and_never_bought_again(tmp_path: Path, how: str) -> None:
    async with BatchServer(serve=UNREADABLE[how]).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 3, ended.err
        last = ended.err.splitlines()[-1]
        for word in ("batch_0", "--batch-abandon", "Run the same command again"):
            assert word in last
        assert any(word in last for word in ("output file file-2", "20 of its requests", "20 lines of its"))
        assert server.calls["content"] == FETCHES
        assert len(server.made) == 1
        assert [b["status"] for b in (await status(bench.run))["batches"]] == ["completed"]
        server.serve = None
        again = await distill(*bench.words)
        assert again.code == 0, again.err
        assert_billed_once(server, COUNT)
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


LATE: dict[str, Serve] = {
    "whole at the third time": lambda file, n: Sent(half(file.raw) if n < 3 else file.raw),
    "there at the third time": lambda file, n: Sent(b"{}", status=404) if n < 3 else Sent(file.raw),
    "longer each time": lambda file, n: Sent(file.raw[: n * len(file.raw) // 8], length=len(file.raw)),
    "damaged at first": lambda file, n: Sent(file.raw.replace(b'"}', b'"', 5) if n < 2 else file.raw),
}


@pytest.mark.parametrize("how", LATE)
async def test_a_file_that_is_readable_later_is_waited_for(tmp_path: Path, how: str) -> None:
    async with BatchServer(serve=LATE[how]).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert_billed_once(server, COUNT)
        assert len(server.made) == 1
    await assert_all_answered(bench)


DRESSED: dict[str, Callable[[bytes], bytes]] = {
    "line ends of Windows and a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"),
    "blank lines and no last line end": lambda raw: raw.replace(b"\n", b"\n\n").rstrip(b"\n"),
    "every line twice": lambda raw: raw + raw,
    "lines of nobody": lambda raw: b'hello\n{"custom_id": "x"}\n' + raw + b'{"sum": 20}\n',
}


@pytest.mark.parametrize("how", DRESSED)
async def test_what_stands_beside_the_results_does_not_matter(tmp_path: Path, how: str) -> None:
    async with BatchServer(serve=lambda file, n: Sent(DRESSED[how](file.raw))).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert server.calls["content"] == 1
        assert ("20 of its results came twice" in ended.err) == (how == "every line twice")
        assert ("1 lines of its results belong to none of its requests" in ended.err) == (
            how == "lines of nobody"
        )
    await assert_all_answered(bench)


async def test_results_that_no_file_is_named_for_are_waited_for_and_not_bought_again(tmp_path: Path) -> None:
    async with BatchServer(told={"output_file_id": None}).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 3, ended.err
        assert "20 of its requests are completed, and it names no results file" in ended.err
        async with started(*bench.words) as command:
            await until(lambda: b"it names no results file" in command.err)
            server.told = {}
            ended = await command.ended()
        assert ended.code == 0, ended.err
        assert_billed_once(server, COUNT)
    await assert_all_answered(bench)


async def test_a_batch_that_says_nothing_of_its_results_is_not_bought_again(tmp_path: Path) -> None:
    silent = {"output_file_id": None, "request_counts": None}
    async with BatchServer(told=silent).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 3, ended.err
        assert len(server.made) == 1


async def test_a_damaged_file_of_errors_is_not_taken_for_one_without(tmp_path: Path) -> None:
    def serve(file: Stored, n: int) -> Sent:
        return Sent(file.raw[:-40] if file.name.endswith("_error.jsonl") else file.raw)

    faults = {f"row {n}.": ["400"] for n in range(3)}
    async with BatchServer(serve=serve, faults=faults).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 3, ended.err
        assert "its error file file-3 ends in a line that cannot be read" in ended.err
        assert len(server.made) == 1
        server.serve = None
        assert (await distill(*bench.words)).code == 1
        assert len(server.made) == 1
    assert (await status(bench.run))["stages"]["generate"]["failed"] == {"bad_request": 3}


async def test_results_are_found_in_whichever_file_they_stand(tmp_path: Path) -> None:
    def serve(file: Stored, n: int) -> Sent:
        if not file.name.startswith("batch_0_"):
            return Sent(file.raw)
        (output,) = [f.raw for f in server.files.values() if f.name == "batch_0_output.jsonl"]
        good = output.splitlines(keepends=True)
        return Sent(b"".join(good[::2]) if file.name.endswith("_output.jsonl") else b"".join(good[1::2]))

    async with BatchServer(serve=serve, faults={"row 0.": ["500"]}).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert [len(made.lines) for made in server.made.values()] == [COUNT, 1]
    await assert_all_answered(bench)


@pytest.mark.slow
async def test_abandoned_results_are_bought_again_and_the_others_are_kept(tmp_path: Path) -> None:
    def serve(file: Stored, n: int) -> Sent:
        return Sent(half(file.raw) if file.name.startswith("batch_0_") else file.raw)

    async with BatchServer(serve=serve).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        assert (await distill(*bench.words, "--batch-abandon", "batch_7")).code == 3
        kept = len(await export(bench.run))
        ended = await distill(*bench.words, "--batch-abandon", "batch_0")
        assert ended.code == 0, ended.err
        assert 0 < kept < COUNT
        assert [len(made.lines) for made in server.made.values()] == [COUNT, COUNT - kept]
    await assert_all_answered(bench)
    assert at_risk(bench) > 0


@pytest.mark.slow
async def test_a_recipe_names_the_batch_that_is_given_up(tmp_path: Path) -> None:
    def serve(file: Stored, n: int) -> Sent:
        return Sent(half(file.raw) if file.name.startswith("batch_0_") else file.raw)

    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(COUNT))
    async with BatchServer(serve=serve).running() as server:
        teacher = recipe_files.teacher(server.base_url)
        for more, code in (({}, 3), ({"batch_abandon": "batch_0"}, 0)):
            stage = recipe_files.generate(pool, batch=True, **more)
            recipe = recipe_files.write_recipe(tmp_path, {"teacher.t": teacher, "stage.s": stage})
            ended = await recipe_files.run_recipe(recipe, run)
            assert ended.code == code, ended.err
        assert len(server.made) == 2
    assert len(await export(run)) == COUNT


@pytest.mark.slow
async def test_an_online_run_leaves_unreadable_results_alone(tmp_path: Path) -> None:
    async with BatchServer(serve=UNREADABLE["cut between lines"]).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        assert (await distill(*bench.words)).code == 3
        ended = await distill(*bench.online)  # the server knows no chat: it would say 404
        assert ended.code == 3, ended.err
        assert "batch_0" in ended.err.splitlines()[-1]


@pytest.mark.parametrize("fault", ["neither", "status_0", "status_none", "status_text", "both_500", "both"])
async def test_a_line_that_does_not_say_what_became_of_its_row_leaves_it_pending(
    tmp_path: Path, fault: str
) -> None:
    async with BatchServer(faults={"row 3.": [fault]}).running() as server:
        bench = Bench(tmp_path, server, 10)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert [len(made.lines) for made in server.made.values()] == [10, 1]
    ((cause, words),) = bench.sql("SELECT cause, message FROM errors")
    assert cause == ("malformed" if fault == "both" else "server")
    assert {"neither": "neither a response nor an error", "status_0": "status_code 0"}.get(fault, "") in words
    kept = bench.sql(f"{KEPT} AND r.cost_micro > 0")
    assert len(kept) == (fault == "both")  # what was paid for is kept
    await assert_all_answered(bench)


async def test_a_row_whose_line_names_a_refusal_beside_an_error_is_not_asked_for_ever(tmp_path: Path) -> None:
    async with BatchServer(faults={"row 3.": ["both_400"] * 9}).running() as server:
        bench = Bench(tmp_path, server, 10)
        ended = await distill(*bench.words)
        assert ended.code == 1, ended.err
        assert [len(made.lines) for made in server.made.values()] == [10, 1, 1]


async def test_a_line_that_is_damaged_for_good_costs_its_row_only(tmp_path: Path) -> None:
    async with BatchServer(faults={"row 3.": ["torn"]}).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert server.calls["content"] == FETCHES + 1
        assert [len(made.lines) for made in server.made.values()] == [COUNT, 1]
    await assert_all_answered(bench)
    ((raw,),) = bench.sql(KEPT)
    assert raw.startswith('{"id":"batch_req_1"')


@pytest.mark.slow
async def test_lines_that_are_damaged_by_the_dozen_are_a_damaged_file(tmp_path: Path) -> None:
    async with BatchServer(faults={"row": ["torn"] * 5}).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 3, ended.err
        assert "5 lines of its results cannot be read" in ended.err
        assert len(server.made) == 1


@pytest.mark.slow
async def test_a_huge_line_takes_little_memory(tmp_path: Path) -> None:
    """400 MiB in one line; the process may have 1 GiB in all, most of it for what it loads."""

    def serve(file: Stored, n: int) -> Sent:
        first, rest = file.raw.split(b"\n", 1)
        return Sent(rest + first[:-3] + b" " * 400 * MIB + b"\n")

    async with BatchServer(serve=serve).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        peak = 0

        def measured() -> bool:
            nonlocal peak
            peak = max(peak, _memory(command.process.pid))
            return command.process.returncode is not None

        async with started(*bench.words) as command:
            await until(measured, seconds=150, every=0.05)
            assert (await command.ended()).code == 3
        assert len(server.made) == 1
    assert peak < 400_000


def _memory(pid: int) -> int:
    """Of a process, in kB, at its highest."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while a fetch waits", "after the run has stopped"])
async def test_a_kill_while_results_cannot_be_read_costs_nothing(tmp_path: Path, moment: str) -> None:
    async with BatchServer(serve=UNREADABLE["cut in a line"]).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        for fetches in (2, 5):
            async with started(*bench.words) as command:
                await until(lambda fetches=fetches: server.calls["content"] >= fetches)  # type: ignore[misc]
                if moment == "while a fetch waits":
                    command.send(signal.SIGKILL)
                await command.ended()
        assert bench.sql("SELECT count(*) FROM batches WHERE closed_at IS NULL") == [(1,)]
        server.serve = None
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert_billed_once(server, COUNT)
        assert len(server.made) == 1
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


async def test_the_key_is_cut_out_of_what_is_kept_of_a_damaged_line(tmp_path: Path) -> None:
    def serve(file: Stored, n: int) -> Sent:
        first, rest = file.raw.split(b"\n", 1)
        is_first = file.name.startswith("batch_0_")
        return Sent(first[:-30] + KEY.encode() + b"\n" + rest if is_first else file.raw)

    async with BatchServer(serve=serve).running() as server:
        bench = Bench(tmp_path, server, COUNT)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert KEY not in ended.err
    assert KEY.encode() not in (bench.run / "ledger.db").read_bytes()
    assert_books_balance(bench)


def test_the_spoilt_files_are_of_the_shape_that_is_served() -> None:
    """The cases must spoil something."""
    record = {"custom_id": "a" * 64, "response": {"status_code": 200, "body": {"text": "x" * 900}}}
    file = Stored("file-1", "batch_0_output.jsonl", orjson.dumps(record) + b"\n", "batch_output")
    file.raw *= len(rows(COUNT))
    for how, serve in UNREADABLE.items():
        assert serve(file, 1).raw != file.raw or serve(file, 1).encoding, how
