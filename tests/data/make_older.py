"""Made the run folders in version2/ and version3/: by the program as it was when ledgers had that version.

    cd A-CHECKOUT-OF-THAT-TIME && PYTHONPATH=$PWD:tests python -P .../tests/data/make_older.py OUT

Kept to show where they come from; today's program writes another version. `plain` holds a run with two
samples a row: time-outs, a reply that was no JSON, a filtered row, a kill -9 with a request in flight.
`recipe` holds two stages: an imported answer, a row that the server refused, a judge's reply that could
not be read. Beside them is what that program exported, and what its `status --json` said.
"""

import asyncio
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from cli import bare, distill, rows, started, until, write_pool
from judging import verdict
from recipe_files import write_recipe
from scripted import completion, scripted

MODEL, PRICE = "gpt-4", {"price_in": 10, "price_out": 30}
MONEY = ("--model", MODEL, "--price-in", 10, "--price-out", 30)


class Teacher:
    """Answers with the question's own words; misbehaves as its rows say."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.held = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        text = body["messages"][-1]["content"]
        times = self.asked[text] = self.asked.get(text, 0) + 1
        if "row 3" in text and times == 1:
            await asyncio.sleep(5)
        if "row 4" in text and times == 1:
            return web.Response(body=b"<html>a gateway", content_type="text/html")
        if "row 5" in text and times <= 2:
            self.held += 1
            await asyncio.sleep(3600)
        if "refuse me" in text:
            words = {"error": {"message": "This cannot be answered.", "type": "invalid_request_error"}}
            return web.json_response(words, status=400)
        if "filter me" in text:
            words = {"error": {"message": "No.", "type": "invalid_request_error", "code": "content_filter"}}
            return web.json_response(words, status=400)
        shown = "Nobody can say." if "unreadable" in text else verdict(text)
        reply: Any = completion(shown or f"<{text}> \u00e9\u4e2d\u6587 \U0001f600")
        return web.Response(body=reply, content_type="application/json")


async def plain(folder: Path, url: str, teacher: Teacher) -> None:
    pool = write_pool(folder / "pool.jsonl", [*rows(6), {"instruction": "filter me"}, *rows(1)])
    words = ["generate", pool.name, "--run", "run", "--base-url", url, *MONEY, "--samples", 2, "--yes"]
    words += ["--timeout", 2, "--concurrency", 1, "--prompt", bare(folder)[1].name]
    async with started(*words) as command:
        await until(lambda: teacher.held)
        command.send(signal.SIGKILL)
        await command.ended()
    ended = await distill(*words)
    assert ended.code == 0, ended.err
    for format, name in (("alpaca", "alpaca.jsonl"), ("alpaca", "alpaca.json"), ("chat", "chat.jsonl")):
        assert (await distill("export", "run", "--format", format, "--out", name)).code == 0


async def recipe(folder: Path, url: str) -> None:
    pool = [*rows(4), {"instruction": "refuse me"}, {"instruction": "unreadable"}, {"instruction": "bought"}]
    write_pool(folder / "pool.jsonl", pool)
    write_pool(folder / "bought.jsonl", [{"instruction": "bought", "output": "Paid elsewhere."}])
    write_pool(folder / "other.jsonl", [{**row, "output": f"Other {n}."} for n, row in enumerate(pool)])
    bare(folder)
    tables = {
        "teacher.t": {"model": MODEL, "base_url": url, **PRICE},
        "stage.english": {"task": "generate", "teacher": "t", "pool": "pool.jsonl", "prompt": "bare.txt"},
        "stage.judged": {
            "task": "judge", "teacher": "t", "answers": "english", "against": "other.jsonl",
            "both_orders": True,
        },
    }  # fmt: skip
    path = write_recipe(folder, tables)
    words = ("--model", MODEL, "--stage", "english", "--prompt", "bare.txt")
    assert (await distill("import", "bought.jsonl", "--run", "run", *words)).code == 0
    ended = await distill("run", path.name, "--run", "run", "--yes")
    assert ended.code == 1, ended.err
    for stage, format in (("english", "alpaca"), ("judged", "reviews")):
        out = f"{stage}.jsonl"
        ended = await distill("export", "run", "--stage", stage, "--format", format, "--out", out)
        assert ended.code == 0, ended.err


async def make(out: Path) -> None:
    for name in ("plain", "recipe"):
        folder, teacher = out / name, Teacher()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.chdir(folder)  # no path of this machine goes into the ledger
        here = Path()
        async with scripted(teacher.answer) as url:
            await (plain(here, url, teacher) if name == "plain" else recipe(here, url))
        (folder / "status.json").write_text((await distill("status", "run", "--json")).out)
        (folder / "run" / "reserve").unlink(missing_ok=True)
        (folder / "run" / "lock").unlink()
        with zipfile.ZipFile(out / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(folder))


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1]).resolve()))
