"""Run folders with all that a report tells, made in a moment: a ledger, trainings, evaluations."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import orjson

from engine.collect.settings import Settings
from store.records import Fault, Response, Usage
from tests.support.ledgers import PLAN, Book, chat, opened, request

HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'
    "'--></style><svg onload=alert(4)><a href='javascript:alert(5)'>x</a> https://evil.example/ \u202e ]]>"
)
LOCAL = "http://127.0.0.1:1/v1"


def settings(**given: Any) -> dict[str, Any]:
    return Settings(**{"model": "gpt-4", "base_url": LOCAL, **given}).public()


def estimated(requests: int, cost: float) -> str:
    spread = {"expected": cost, "low": cost / 2, "high": cost * 2}
    tokens = {"expected": 50.0 * requests, "low": 25.0 * requests, "high": 99.0 * requests}
    told = {"requests": requests, "completion_tokens": tokens, "cost_usd": spread}
    return orjson.dumps({**told, "seconds": spread, "bound_by": "requests"}).decode()


async def fill(run: Path, word: str = "", rows: int = 12) -> None:
    """Answers of several lengths and outcomes, failures, 429s, scores and judgements; `word` stands in all
    that comes from elsewhere."""
    os.makedirs(run, exist_ok=True)
    async with opened(run) as ledger:
        book = Book(ledger, f"generate{word[:40]}", settings=settings(model=f"gpt-4{word}", rpm=60, tpm=6000))
        ledger.note("UPDATE stages SET total = ? WHERE id = ?", rows + 1, book.stage)
        ledger.note("UPDATE runs SET estimate = ? WHERE id = ?", estimated(rows, 0.02), book.run)
        for n in range(1, rows + 1):
            book.place(n, f"Question {n}? {word}")
            outcome: Any = "length" if n % 5 == 0 else "stop"
            book.answer(
                n,
                Response(
                    outcome,
                    "stop",
                    Usage(20, 10 * n),
                    chat(f"Answer {n}. {word}"),
                    1500,
                    0.2,
                    word or "gpt-4",
                ),
            )
        limited = book.ask(1)
        ledger.error(book.stage, limited, 1, Fault("rate_limit", 429, f"HTTP 429: {word}"), 5000)
        book.place(rows + 1, f"Bad {word}")
        book.fail(rows + 1, words=f"HTTP 400: {word}")
        _contests(ledger, "score", rows + 2, 8, word)
        _contests(ledger, "judge", rows + 10, 8, word)


def _contests(ledger: Any, task: str, first: int, count: int, word: str) -> None:
    """Two models' answers, the first of which is always thought better: 8 to 5."""
    stage, run = ledger.begin(f"{task}{word[:20]}", task, 1, settings(task=task, stage=task))
    ledger.note("UPDATE stages SET total = ? WHERE id = ?", count, stage)
    for n in range(count):
        number, order = first + n, (n % 2, 1 - n % 2)
        models, answers = (f"one{word}", f"two{word}"), (f"first {n} {word}", f"second {n} {word}")
        item = {
            "id": f"q{n}", "instruction": f"Question {n} {word}", "input": "", "category": "general",
            "models": [models[i] for i in order], "answers": [answers[i] for i in order], "order": order,
        }  # fmt: skip
        ledger.place(stage, n, orjson.dumps(item), PLAN, [(0, number)], [request(number)])
        scores = [(8, 5)[i] for i in order]
        attempt = ledger.journal(run, stage, number, 5000)
        text = f"{scores[0]} {scores[1]}\nBecause. {word}"
        reply = Response("stop", "stop", Usage(50, 20), chat(text), 700, 0.1, "gpt-4")
        ledger.put(stage, attempt, number, reply, 5000, final=True)


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(value))
    return path


def training(folder: Path, word: str = "", reward: bool = False, steps: int = 30) -> Path:
    """A folder as `train` leaves it."""
    records: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step % 10 == 0:
            sample = {"prompt": f"Prompt {word}", "answer": f"At {step} {word}", "reference": word or "ref"}
            held = {"kind": "held_out", "step": step, "held_out_loss": 2.0 - step / 50, "samples": [sample]}
            records.append(held | ({"held_out_accuracy": 0.5 + step / 100} if reward else {}))
        if step:
            told = {"steps": steps, "epoch": 1, "lr": 1e-5, "grad_norm": 1.0, "tokens": 100, "seconds": 0.5}
            records.append({"kind": "step", "step": step, "loss": 2.1 - step / 40, **told})
    write(folder / "training" / "run.json", {"model": "f" * 64, "batch": 8})
    recipe = {"epochs": 3, "lr": 2e-5, "max_length": 512} | ({"answers": 4} if reward else {})
    write(
        folder / "training" / "finished.json",
        {"steps": steps, "Recipe": recipe, "Data": {"file": word or "x.jsonl", "rows used": 90}},
    )
    (folder / "README.md").write_text(f"---\ntags:\n---\n\n# student {word} on x.jsonl\n")
    (folder / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in records) + b'{"torn')
    if reward:
        write(folder / "report.json", reward_figures())
    return folder


def reward_figures(accuracy: float = 0.7) -> dict[str, Any]:
    bucket = {
        "pairs": 200,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.05,
        "length_baseline": 0.6,
    }
    bins = [{"low": 0.5, "high": 0.6, "pairs": 400, "confidence": 0.55, "accuracy": 0.6}]
    return {
        **bucket, "pairs": 400, "chance": 0.5, "over_length": {"difference": 0.1, "low": -0.02, "high": 0.2},
        "by_margin": [{"of": "over 0, up to 1", **bucket}, {"of": "over 1, up to 2", **bucket}],
        "by_length": [], "calibration": {"brier": 0.2, "ece": 0.05, "bins": bins},
    }  # fmt: skip


def judged(a: str = "student", b: str = "ChatGPT", sums: tuple[float, float] = (609, 666)) -> dict[str, Any]:
    """As `evaluate judge --json` prints it."""
    pair = {
        "a": a, "b": b, "judge": "gpt-4", "questions": 80, "unparsed": 2, "sum_a": sums[0], "sum_b": sums[1],
        "relative": sums[0] / sums[1], "low": 0.86, "high": 1.02, "wins": 20, "ties": 20, "losses": 40,
        "win_rate": 0.375, "win_rate_low": 0.3, "win_rate_high": 0.45,
        "by_category": [{"category": b, "questions": 80, "relative": 0.9, "low": 0.8, "high": 1.0}],
        "position_bias": {"questions": 80, "first": 40, "ties": 10, "second": 30, "flips": 20},
        "balanced": None, "length_controlled": None,
    }  # fmt: skip
    return {"pairs": [pair], "judges": {"names": ["gpt-4"], "agreement": []}}


def rouged(word: str = "") -> dict[str, Any]:
    def level(value: float) -> dict[str, Any]:
        return {"n": 60, "rouge1": value, "rouge2": value, "rougeL": value}

    groups = ("all", "0-2", "3-5", "6-10", ">10")
    apart = {"n": 60, "rougeL": {"difference": 0.05, "low": -0.01, "high": 0.1}}
    models = {
        f"student{word}": {g: level(0.4) for g in groups},
        f"gpt-4{word}": {g: level(0.35) for g in groups},
    }
    return {
        "models": models,
        "against": f"gpt-4{word}",
        "differences": {f"student{word}": dict.fromkeys(groups, apart)},
    }


def voted(word: str = "") -> dict[str, Any]:
    def part(share: float) -> dict[str, Any]:
        return {"share": share, "low": share - 0.05, "high": share + 0.05, "votes": round(share * 300)}

    criterion = {
        "votes": 300, "win": part(0.5), "tie": part(0.3), "loss": part(0.2),
        "net": {"share": 0.3, "low": 0.2, "high": 0.4}, "agreement": {"alpha": 0.4},
    }  # fmt: skip
    return {
        "a": f"student{word}", "b": "ChatGPT", "items": 100, "voted": 100, "votes": 300,
        "criteria": dict.fromkeys(("helpful", "honest", "harmless"), criterion),
        "annotators": [{"name": word or "Ann", "votes": 300}],
    }  # fmt: skip


def statistics(word: str = "") -> dict[str, dict[str, Any]]:
    """By the name of the file: what the evaluations of data print."""
    spread = {"5": 1, "25": 2, "50": 3, "75": 4, "95": 5, "99": 6}
    words = {"mean": 3.0, "max": 9, "quantiles": spread, "histogram": [5, 3, 2]}
    share = {"n": 1, "share": 0.1, "low": 0.0, "high": 0.2}
    nouns = [{"noun": f"list{word}", "count": 5}, {"noun": "story", "count": 3}]
    pair = {"verb": "write", "noun": f"list{word}", "count": 5}
    verbs = {
        "texts": 90, "with_pair": 80, "distinct_pairs": 2, "pairs": [pair],
        "verbs": [{"verb": f"write{word}", "count": 8, "nouns": nouns}],
    }  # fmt: skip
    level = {"clusters": 1, "rows": 2, "extra": 1, "share": 0.1}
    test = {"rows": 9, "contained": 2, "share": 0.2, "mostly": 1, "whole": 1, "too_short": 0}
    said = {"rows": 10, "refused_in_words": share, "empty": share, "languages": {"en": share}}
    edges, name = {"words": {"edges": [0, 10, 20]}}, f"d{word}"
    return {
        "lengths": {"field": "output", "units": edges, "data": {name: {"rows": 10, "words": words}}},
        "verbs": {"data": {name: verbs}},
        "shares": {"data": {name: said}, "heuristic": word},
        "duplicates": {
            "field": f"instruction{word}", "threshold": 0.7, "rows": 10, "exact": level, "normalised": level,
            "near": level,
        },
        "overlap": {"n": 13, "tests": {f"t{word}": test}},
        "scores": {"scale": [1, 10], "data": {f"m{word}": {"n": 4, "shares": {"9": 0.75, "8.5": 0.25}}}},
    }  # fmt: skip


def slowed(run: Path) -> None:
    """As if each run had taken a while."""
    with contextlib.closing(sqlite3.connect(run / "ledger.db")) as db, db:
        db.execute("UPDATE runs SET ended = started + 20")


async def whole_run(run: Path, word: str = "") -> Path:
    """Everything that a report can tell, in one folder."""
    await fill(run, word)
    slowed(run)
    training(run / "student", word)
    training(run / "reward", word, reward=True)
    for name, data in {
        "judged": judged(f"a{word}", f"b{word}"),
        "rouge": rouged(word),
        "votes": voted(word),
        **statistics(word),
    }.items():
        write(run / "evaluations" / f"{name}.json", data)
    return run
