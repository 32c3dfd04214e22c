"""A report tells what the ledger, the trainings and the evaluations say, on one page that is safe to open."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import distill
from tests.support.ledgers import Book, chat, opened
from tests.support.reports import HOSTILE, fill, judged, reward_figures, settings, training, whole_run, write

pytest.importorskip("jinja2", reason="the layer `evaluate` is not installed")
pytest.importorskip("matplotlib", reason="the layer `evaluate` is not installed")

from engine.run.status import status_of
from evaluators.report.build import build, html, run_report, tables
from evaluators.report.charts import measured
from evaluators.report.figures import (
    NARROW,
    SETTINGS,
    WIDE,
    Drawing,
    Heading,
    Listing,
    Report,
    Samples,
    Section,
    Words,
    table,
)
from evaluators.report.judge import aside
from store.errors import RunFolderError, UsageError
from store.records import Response, Usage


class Seen(HTMLParser):
    """Every tag with its attributes, all text, and what policy the page states."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def section(report: Report, name: str) -> Section:
    return next(s for s in report.sections if s.id == name)


def numbers(report: Report) -> dict[str, Any]:
    """Every table of a report by its name."""
    blocks = [b for s in report.sections for b in s.blocks]
    found = [b.table for b in blocks if isinstance(b, Listing)]
    return {t.name: t for t in [*found, *(b.figure.table for b in blocks if isinstance(b, Drawing))]}


def weak(report: Report, name: str) -> str:
    return " ".join(b.text for b in section(report, name).blocks if getattr(b, "weak", False))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(whole_run(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def whole(run: Path) -> Report:
    return build(run)


@pytest.fixture(scope="module")
def page(whole: Report) -> str:
    return html(whole)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = asyncio.run(whole_run(tmp_path_factory.mktemp("hostile"), HOSTILE))
    run_report(run, run / "report.html")
    return run / "report.html"


def test_all_that_a_run_holds_has_its_section(whole: Report) -> None:
    wanted = "asked cost limits failures data statistics scores training reward judge rouge human"
    assert [s.id for s in whole.sections] == wanted.split()
    assert [name for name, _ in whole.left_out] == ["The ranking study"]


async def test_the_numbers_are_those_of_status(tmp_path: Path) -> None:
    await fill(tmp_path)
    told, report = status_of(tmp_path), build(tmp_path)
    for row in numbers(report)["stages"].rows:
        stage = told["stages"][row[0]]
        assert (row[3], row[4], row[5]) == (stage["total"], stage["done"], sum(stage["failed"].values()))
    bill = {row[0]: row[2:] for row in numbers(report)["bill"].rows}
    for name, stage in told["stages"].items():
        assert bill[name] == (stage["prompt_tokens"], stage["completion_tokens"], stage["cost_usd"])
    heads = {head.label: head.value for _, head in report.headlines}
    assert heads["answers stored"] == str(sum(s["done"] for s in told["stages"].values()))
    assert heads["spent"] == f"${told['spent_usd']:.4f}"
    assert heads["rows failed"] == "1"


def test_the_bill_stands_beside_the_estimate_of_what_was_answered(whole: Report) -> None:
    (row,) = numbers(whole)["estimate"].rows
    assert row[1:] == (12, 12, 0.02, 0.01, 0.04, pytest.approx(12 * 1500 / 1e6))


def test_limits_over_time_add_up_to_what_was_sent(whole: Report) -> None:
    table = numbers(whole)["limits-1"]
    size = table.numbers("seconds")[0]
    sent = sum(table.numbers("requests a minute")) * size / 60
    assert sent == pytest.approx(14)  # twelve answers, a 429 and a failure
    assert sum(table.numbers("tokens a minute")) * size / 60 == pytest.approx(12 * 20 + 780)
    assert set(table.numbers("request limit")) == {60}
    assert sum(table.numbers("429s")) == 1


async def test_a_burst_is_told_in_a_line(tmp_path: Path) -> None:
    await fill(tmp_path / "run")
    report = build(tmp_path / "run")
    assert "limits-1" not in numbers(report)
    (words,) = section(report, "limits").blocks
    assert isinstance(words, Words)
    assert re.search(r"Too short for a figure: .* \(14 requests in \d\.\d s\)", words.text)


def test_failures_are_told_with_the_servers_words(whole: Report) -> None:
    assert ("bad_request", 1) in numbers(whole)["attempts-by-cause"].rows
    assert ("generate", "bad_request", "400", 1, 1, 1) in numbers(whole)["errors"].rows
    assert ("rate_limit", "HTTP 429:", 1) in numbers(whole)["messages"].rows


def test_lengths_and_outcomes_are_of_all_answers(whole: Report) -> None:
    (row,) = numbers(whole)["lengths"].rows
    assert row[2:] == (12, 65.0, 10, 30, 60, 90, 120, 120, 120)
    assert sum(numbers(whole)["length-of-answers"].numbers("generate")) == pytest.approx(1)
    assert numbers(whole)["outcomes"].rows == (("generate", 10 / 12, 2 / 12),)


def test_scores_of_a_stage_are_read_from_the_replies(whole: Report) -> None:
    rows = {row[0]: row[1:] for row in numbers(whole)["scores-1"].rows}
    models = numbers(whole)["scores-1"].columns[1:]
    assert dict(zip(models, rows["8"], strict=True)) == {"one": 1.0, "two": 0.0}
    assert dict(zip(models, rows["5"], strict=True)) == {"one": 0.0, "two": 1.0}


def test_judgements_of_the_run_are_those_of_evaluate_judge(whole: Report, run: Path) -> None:
    from evaluators.judge.metrics import judge_report
    from evaluators.judge.reviews import read_run

    (pair,) = judge_report(read_run(run, []))["pairs"]
    (row,) = next(t for name, t in numbers(whole).items() if name.endswith("-two")).rows
    assert (pair["sum_a"], pair["sum_b"], pair["questions"]) == (64, 40, 8)
    assert row == ("one", pair["relative"], pair["low"], pair["high"], "64 : 40 = 160%")


def test_a_chart_of_verbs_needs_more_than_a_few(whole: Report, tmp_path: Path) -> None:
    from evaluators.report.data import _verbs
    from evaluators.report.inputs import Evaluation

    few = {"texts": 9, "with_pair": 2, "verbs": [{"verb": "a", "nouns": [{"noun": "b", "count": 2}]}]}
    (said,) = _verbs(Evaluation("x", "verbs", {"data": {"d": few}}), 1)
    assert isinstance(said, Words)
    assert "only 2 texts" in said.text


def test_a_weak_result_says_so(whole: Report, tmp_path: Path) -> None:
    assert "not shown to beat length" in weak(whole, "reward")
    assert "No difference is shown" in weak(whole, "judge")
    assert "One annotator" in weak(whole, "human")
    heads = {head.label: head.weak for _, head in whole.headlines}
    assert heads["a against b"] == "no difference is shown"
    assert heads["reward model prefers the better answer"] == "not shown to beat length"


def test_the_sums_stand_on_the_bars(whole: Report) -> None:
    drawn = [b.figure for b in section(whole, "judge").blocks if isinstance(b, Drawing)]
    assert any("609 : 666 = 91%</text>" in f.wide and "609 : 666 = 91%</text>" in f.narrow for f in drawn)


def test_categories_of_several_models_stand_side_by_side_and_intervals_behind() -> None:
    def pair(model: str, *relative: float) -> dict[str, Any]:
        parts = [
            {"category": name, "questions": 10, "relative": value, "low": value - 0.1, "high": value + 0.1}
            for name, value in zip(("math", "writing"), relative, strict=False)
        ]
        return {"a": model, "b": "vicuna", "judge": "gpt-4", "by_category": parts}

    pairs = [pair("bard", 0.9, 1.1), pair("gpt35", 1.2)]
    first, second = (b for b in aside({"pairs": pairs}, 1) if isinstance(b, Listing))
    assert first.table.columns == ("category", "bard", "gpt35")
    assert first.table.rows == (("math", 0.9, 1.2), ("writing", 1.1, None))
    assert "against vicuna" in first.caption
    assert (len(second.table.rows), bool(second.folded)) == (3, True)
    (alone,) = (b for b in aside({"pairs": pairs[:1]}, 1) if isinstance(b, Listing))
    assert (len(alone.table.rows), alone.folded) == (2, "")


def test_a_csv_holds_what_is_drawn(whole: Report) -> None:
    """Bars are as long as the numbers say: measured in the drawing, not asked of who drew it."""
    (figure,) = [b.figure for b in section(whole, "failures").blocks if isinstance(b, Drawing)]
    rows = list(csv.DictReader(io.StringIO(figure.table.csv)))
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+\s+L ([\d.]+) [^>]*?stroke-width: 0.5', figure.wide)
    lengths = [float(end) - float(begin) for begin, end in bars]
    assert len(lengths) == len(rows) == 2
    shares = [length / max(lengths) for length in lengths]
    assert shares == pytest.approx(
        [float(r["attempts"]) / max(float(r["attempts"]) for r in rows) for r in rows]
    )


def test_the_page_carries_every_table_as_csv(whole: Report, page: str) -> None:
    seen = Seen(page)
    links = {a["download"]: a["href"] for tag, a in seen.tags if tag == "a" and "download" in a}
    for name, text in tables(whole):
        href = links[f"{name}.csv"]
        assert href
        assert base64.b64decode(href.split(",", 1)[1]).decode() == text


async def test_csv_files_lie_where_they_are_asked_for(tmp_path: Path) -> None:
    await fill(tmp_path / "run", rows=2)
    run_report(tmp_path / "run", tmp_path / "r.html", tmp_path / "csv")
    assert (tmp_path / "csv" / "bill.csv").read_text().startswith("stage,teacher,prompt tokens")


def test_a_cell_never_becomes_a_formula() -> None:
    from evaluators.report.figures import table

    assert table("t", ("a",), [("=cmd()",), ("-1+1",), ("fine",)]).csv == "a\n'=cmd()\n'-1+1\nfine\n"


def test_no_tag_or_attribute_can_come_from_the_data(hostile: Path) -> None:
    seen = Seen(hostile.read_text())
    tags = {tag for tag, _ in seen.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "audio", "video"}
    assert "alert(1)" in "".join(seen.text)  # it is there, as text
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "xlink:href", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:text/csv;")), (tag, value)


def test_nothing_is_fetched_from_anywhere(hostile: Path) -> None:
    seen = Seen(hostile.read_text())
    policies = [a["content"] for tag, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert policies[0]
    assert "default-src 'none'" in policies[0]
    assert "script" not in policies[0]
    styles = " ".join(a.get("style") or "" for _, a in seen.tags)
    assert not re.search(r"url\((?!#)|@import|expression", styles)


def test_a_browser_runs_nothing_and_asks_nobody(hostile: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.path.exists("/usr/bin/chromium"):
        pytest.skip("no Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("dialog", lambda d: (said.append(f"dialog {d.message}"), d.dismiss()))
            page.on("request", lambda r: said.append(r.url) if not r.url.startswith("file:") else None)
            page.on("console", lambda m: said.append(m.text))
            page.goto(hostile.as_uri())
            for summary in page.query_selector_all("details"):
                summary.evaluate("e => { e.open = true }")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontWeight") == "700"
        browser.close()
    assert said == []


def test_the_same_run_gives_the_same_bytes(run: Path, whole: Report) -> None:
    """All that is told, and the drawings of some sections."""
    again = build(run)
    assert list(tables(again)) == list(tables(whole))
    pages = [html(replace(report, sections=report.sections[:4])) for report in (again, whole)]
    assert pages[0] == pages[1]


def test_each_svg_has_words_for_who_cannot_see_it_and_ids_of_its_own(page: str) -> None:
    seen = Seen(page)
    drawings = [attributes for tag, attributes in seen.tags if tag == "svg"]
    assert len(drawings) > 20
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    ids = [a["id"] for _, a in seen.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_words_at_a_bar_end_within_the_drawing() -> None:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    words = ("70.0% (65.0% to 75.0%)", "693 : 638 = 109%", "50.0%")
    rows = [(f"the reward model {n}", 0.7, 0.65, 0.75, said) for n, said in enumerate(words)]
    numbers = table("bars", ("who", "share:share", "low:share", "high:share", "words"), rows)
    for is_wide, inches in ((True, WIDE), (False, NARROW)):
        with matplotlib.rc_context(SETTINGS):
            canvas = Canvas(figsize=(inches, 2.0), layout="constrained")
            measured(canvas, numbers, is_wide)
            canvas.draw_without_rendering()
        (axes,) = canvas.axes
        right = max(text.get_window_extent().x1 for text in axes.texts)
        assert right <= canvas.bbox.x1


def test_colours_follow_the_page(whole: Report) -> None:
    """No black or white is drawn that would vanish on the other ground."""
    for block in section(whole, "judge").blocks:
        if isinstance(block, Drawing):
            fixed = re.findall(
                r"(?<!, )#[0-9a-f]{6}\b(?!\))", re.sub(r"url\(#\w+\)|href=\"#\w+\"", "", block.figure.wide)
            )
            assert not fixed


async def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    report = build(tmp_path)
    assert report.sections == []
    assert len(report.left_out) == 13
    assert "Not in this report" in html(report)


async def test_a_run_with_failures_only_has_a_report(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in (1, 2):
            book.place(number)
            book.fail(number, words=HOSTILE)
    report = build(tmp_path)
    assert [s.id for s in report.sections] == ["asked", "failures"]
    assert any(isinstance(b, Samples) for b in section(report, "failures").blocks)


async def test_a_run_that_goes_on_is_told_as_it_stands(tmp_path: Path) -> None:
    """A writer is in the middle; nothing of it is waited for or disturbed."""
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1)
        book.place(2)
        book.ask(2)
        await ledger.committed()
        report = build(tmp_path)
        book.add(3)
        await ledger.committed()
    (row,) = numbers(report)["stages"].rows
    assert (row[3], row[4], row[-1]) == (None, 1, "not ended: killed, or still running")
    assert build(tmp_path).headlines[0][1].value == "2"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no ledger"):
        run_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


async def test_the_command_says_what_is_wrong_in_a_sentence(tmp_path: Path) -> None:
    ended = await distill("report", tmp_path, "--out", tmp_path / "r.html")
    assert ended.code == 2
    assert "it is not a run folder" in ended.err
    assert ended.err.count("\n") == 1


async def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    await fill(tmp_path / "run", rows=2)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="is a folder"):
        run_report(tmp_path / "run", tmp_path)
    with pytest.raises(UsageError, match="cannot write"):
        run_report(tmp_path / "run", tmp_path / "taken" / "r.html")
    assert set(os.listdir(tmp_path)) == {"run", "taken"}


async def test_what_lies_elsewhere_can_be_named(tmp_path: Path) -> None:
    await fill(tmp_path / "run", rows=2)
    elsewhere = training(tmp_path / "elsewhere")
    reward = write(tmp_path / "unseen.json", reward_figures(0.9))
    report = build(tmp_path / "run", [elsewhere], [reward])
    assert {"training", "reward"} <= {s.id for s in report.sections}
    with pytest.raises(UsageError, match="there is no training run"):
        build(tmp_path / "run", [tmp_path])
    with pytest.raises(UsageError, match="is not what"):
        build(tmp_path / "run", [], [write(tmp_path / "odd.json", [1])])


async def test_what_learns_from_preferences_or_rewards_is_a_student(tmp_path: Path) -> None:
    """Though it has an accuracy, or a report, as a reward model has; rewards are drawn against length."""
    await fill(tmp_path / "run", rows=2)
    liked, rewarded = (training(tmp_path / name, name, reward=True) for name in ("liked", "rewarded"))
    write(liked / "training" / "finished.json", {"Recipe": {"loss": "dpo"}})
    write(liked / "report.json", {"accuracy": 0.75, "margin": 0.5, "kl": 1.25, "policy_tokens": 80.0})
    write(rewarded / "training" / "finished.json", {"Recipe": {"method": "rloo"}})
    ends = {"before": {"reward": 0.1, "tokens": 40.0, "kl": None}, "after": {"reward": 0.9, "tokens": 90.0}}
    write(rewarded / "report.json", ends)
    with (rewarded / "metrics.jsonl").open("ab") as file:
        told = {"kind": "step", "loss": -0.5, "tokens": 1, "seconds": 1.0, "answers": [[10, 0.5], [12, 0.7]]}
        file.write(b"\n" + b"".join(orjson.dumps({**told, "step": n}) + b"\n" for n in range(31, 41)))
    report = build(tmp_path / "run", [liked, rewarded], [])
    assert "reward" not in {one.id for one in report.sections}
    page = html(report)
    assert "policy tokens" in page
    assert "0.100 → 0.900" in page
    assert "Reward against length of rewarded" in page


async def test_an_evaluation_that_cannot_be_read_is_named_and_the_rest_is_told(tmp_path: Path) -> None:
    await fill(tmp_path, rows=2)
    folder = tmp_path / "evaluations"
    write(folder / "good.json", judged())
    write(folder / "half.json", {"pairs": [{"a": "x"}]})
    (folder / "torn.json").write_text('{"pairs": [')
    left_out = dict(build(tmp_path).left_out)
    assert "KeyError" in left_out["evaluation half"]
    assert "cannot be read" in left_out["evaluations/torn.json"]
    assert "evaluation good" not in left_out


async def test_what_the_run_itself_holds_is_told_before_other_evaluations(tmp_path: Path) -> None:
    await fill(tmp_path)
    write(tmp_path / "evaluations" / "another.json", judged("elsewhere", "ChatGPT"))
    judging = section(build(tmp_path), "judge")
    names = [b.text for b in judging.blocks if isinstance(b, Heading)]
    assert names[0].startswith("this run's judgements")
    assert names[1] == "another"
    assert "elsewhere" not in judging.headlines[0].label


async def test_prompts_are_told_as_they_were_sent(tmp_path: Path) -> None:
    await fill(tmp_path)
    blocks = section(build(tmp_path), "asked").blocks
    quotes = [q for b in blocks if isinstance(b, Samples) for s in b.samples for q in s.quotes]
    said = " ".join(q.text for q in quotes)
    assert "Below is an instruction that describes a task." in said
    assert "Score each of the 2 answers to the instruction above" in said


async def test_thinking_and_what_was_paid_in_vain_stand_in_the_bill(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger, settings=settings(model="gpt-5-mini", batch=True))
        spread = {"expected": 0.1, "low": 0.05, "high": 0.2}
        tokens = {"expected": 4000.0, "low": 2000.0, "high": 8000.0}
        told = {"requests": 4, "cost_usd": {k: 2 * v for k, v in spread.items()}, "batch_cost_usd": spread}
        told |= {"completion_tokens": tokens, "thinking_tokens": tokens, "seconds": spread}
        sql = "UPDATE runs SET estimate = ? WHERE id = ?"
        ledger.note(sql, orjson.dumps(told).decode(), book.run)
        empty = Response(
            "empty", "length", Usage(10, 900, 0, 900), chat(""), 20_000, 0.2, "m", estimated=True
        )
        for number in (1, 2):
            book.place(number)
            ledger.put(book.stage, book.ask(number), number, empty, 5000, final=False)
        book.answer(1, Response("stop", "stop", Usage(10, 500, 0, 300), chat("Fine."), 10_000, 0.2, "m"))
        book.answer(2, empty)
        torn = Response("malformed", "", Usage(5, 6), b"{", 3000, 0.0, "")
        ledger.put(book.stage, book.ask(1), 1, torn, 0, final=False)
    report = build(tmp_path)
    found, stage = numbers(report), status_of(tmp_path)["stages"]["generate"]
    assert found["in-vain"].rows == (("generate", "empty", 3, 1), ("generate", "malformed", 1, 0))
    (row,) = found["estimate"].rows  # half of the requests have ended; a batch costs half the price
    assert row[1:] == (4, 2, 0.05, 0.025, 0.1, pytest.approx(stage["cost_usd"]))
    (row,) = found["estimated-tokens"].rows
    assert row[1:] == (2000, 1000, 4000, stage["completion_tokens"], 2000, 3000)
    assert found["outcomes"].rows == (("generate", 0.5, 0.5),)
    said = html(report)
    for words in ("3,000 tokens", "3, $0.0600", "3: the server did not report them"):
        assert words in said


async def test_rows_shown_depend_on_the_seed_alone(tmp_path: Path) -> None:
    await fill(tmp_path, rows=40)

    def shown(seed: int) -> list[str]:
        blocks = section(build(tmp_path, seed=seed), "data").blocks
        return [s.title for b in blocks if isinstance(b, Samples) for s in b.samples]

    assert shown(0) == shown(0) != shown(1)


def test_secrets_of_an_address_are_not_told(tmp_path: Path) -> None:
    from evaluators.report.run import hosts

    assert list(hosts({"base_url": "https://user:secret@api.example.com/v1?key=x"})) == ["api.example.com/v1"]


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


async def test_a_ledger_that_is_torn_is_said_to_be(tmp_path: Path) -> None:
    await fill(tmp_path)
    overwrite(tmp_path / "ledger.db", 8192, b"\xff" * 8192 * 10)
    with pytest.raises(RunFolderError, match="cannot read"):
        run_report(tmp_path, tmp_path / "r.html")
