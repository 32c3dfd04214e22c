"""A teacher that thinks: use of the limit, empty rows, the estimate and its bill, the cap; beside a loop.

    python bench/reasoning.py [--rows 3000] [--what limit interval cap] [--ways upfront actual] [--bucket 10]

The provider of the tests on loopback: about 200 tokens of answer after thinking that is log-normal (median
700, sigma 1). 3 % of the replies have no answer, because thinking took all of the bound. Prices are those of
gpt-5-mini ($0.25 and $2 a million tokens).

limit: tokens a minute are limited so that all rows take about a minute and a half, in buckets of 10 s; a
reply takes 1.2 s and half a millisecond a token. `used` is the share of the limit that was used until 97 % of
the requests had gone: after that a few long replies are waited for, and not the limit. --bucket sets the
bucket's seconds: one of a second has room for three replies that used all of their bound, so a provider
that charges real usage refuses often then, whoever asks. `kept` counts the rows of the data set, `empty`
those of them without an answer. The peer is AsyncOpenAI with 64 in flight, its own retries and the same
bound, on the same rows.
interval: without limits, an estimate before anything is known, one after a pilot of 50 rows, and the bill.
cap: half of what all rows would cost as --budget, at a server that keeps to the bound, and at one that bills
three times the bound once it has billed so many of the rows that the cap would buy. `passed` is what was
billed beyond the cap, `request` the most that one request can cost, both in dollars, and `ratio` the first in
the second.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pools import make_pool

ROOT = Path(__file__).resolve().parent.parent
MODEL, PRICE_IN, PRICE_OUT = "gpt-5-mini", 0.25, 2.00  # micro-dollars a token
BOUND = 512 + 16_384  # that is sent: the answer's, and room to think at medium effort
MOST_WORDS = 60
SECONDS = 90  # that the limit is to bind
TEACHER: dict[str, Any] = {
    "mean_tokens": 200, "thinking_tokens": 700, "thinking_sigma": 1.0, "p_used_up": 0.03,
}  # fmt: skip
MEAN_USED = 0.97 * (1154 + 200) + 0.03 * BOUND + 60  # tokens of a reply, with its prompt
PILOT, IN_FLIGHT, PEER_RETRIES = 50, 64, 20
OVERRUN = 3
MOST_OF_IT = 0.97


@dataclass(frozen=True)
class Provider:
    """The tests' provider in a process of its own."""

    url: str

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/counts?contents=0") as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def billed(self) -> float:
        """In dollars."""
        counts = self.counts()
        return (counts["prompt_tokens"] * PRICE_IN + counts["completion_tokens"] * PRICE_OUT) / 1e6


@contextlib.contextmanager
def serving(folder: Path, **config: Any) -> Iterator[Provider]:
    settings = folder / "config.json"
    settings.write_text(json.dumps(TEACHER | config))
    command = [sys.executable, "-m", "tests.support.provider", "--port", "0", "--config", str(settings)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        yield Provider(server.stdout.readline().split()[-1])
    finally:
        server.terminate()
        server.wait()


def distill(*words: object) -> subprocess.CompletedProcess[str]:
    """Exit codes 0 and 1 (some rows failed) are fine, and 3 is for a budget."""
    command = [sys.executable, "-P", "-m", "engine", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done


def asking(pool: Path, run: Path, url: str, *flags: object) -> list[object]:
    price = ("--price-in", PRICE_IN, "--price-out", PRICE_OUT)
    return [pool, "--run", run, "--model", MODEL, "--base-url", url, *price, *flags]


# The limit


@dataclass(frozen=True)
class Seen:
    """What the provider had admitted and charged at a time."""

    at: float
    admitted: int
    charged: float


@contextlib.contextmanager
def watching(server: Provider) -> Iterator[list[Seen]]:
    """What the provider tells, twice a second."""
    seen: list[Seen] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            counts = server.counts()
            if counts["admitted"]:
                at = time.monotonic() - counts["first_admission"]
                seen.append(Seen(at, counts["admitted"], counts["charged_tokens"]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def used(seen: list[Seen], limits: dict[str, Any]) -> tuple[float, float]:
    """(share of the limit, seconds) until most requests had gone; the full bucket of the start counts."""
    gone = next(one for one in seen if one.admitted >= MOST_OF_IT * seen[-1].admitted)
    room = (gone.at + limits["bucket_seconds"]) / 60
    return max(gone.admitted / limits["rpm"], gone.charged / limits["tpm"]) / room, gone.at


def limits_of(way: str, rows: int, bucket: float) -> dict[str, Any]:
    each = MEAN_USED if way == "actual" else BOUND + 60
    seconds = SECONDS * min(1.0, rows / 3000) ** 0.5  # fewer rows, less time for each
    return {
        "rpm": 10_000,
        "tpm": round(each * rows * 1.03 / seconds * 60),
        "bucket_seconds": bucket,
        "charge": way,
    }


def limit(client: str, way: str, rows: int, bucket: float) -> str:
    limits = limits_of(way, rows, bucket)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, run = folder / "pool.jsonl", folder / "run"
        make_pool(pool, rows, MOST_WORDS)
        with (
            serving(folder, latency=1.2, latency_sigma=0.3, token_seconds=0.0005, **limits) as server,
            watching(server) as seen,
        ):
            started = time.monotonic()
            if client == "ours":
                flags = ("--rpm", limits["rpm"], "--tpm", limits["tpm"], "--yes", "--quiet")
                distill("generate", *asking(pool, run, server.url, *flags))
                seconds, texts = time.monotonic() - started, exported(run, folder / "out.jsonl")
            else:
                texts = asyncio.run(peer(instructions(pool), server.url))
                seconds = time.monotonic() - started
            counts, billed = server.counts(), server.billed()
    share, until = used(seen, limits)
    refused = sum(counts["rejected"].values()) / counts["requests"]
    empty = sum(not text.strip() for text in texts)
    return (
        f"{client:6} {way:8} {bucket:6g} {rows:6} {seconds:8.1f} {until:6.1f} {share:6.3f} {refused:7.2%} "
        f"{len(texts):6} {empty:6} {billed:7.2f}"
    )


def exported(run: Path, out: Path) -> list[str]:
    distill("export", run, "--format", "alpaca", "--out", out)
    return [json.loads(line)["output"] for line in out.read_text().splitlines()]


def instructions(pool: Path) -> list[str]:
    return [json.loads(line)["instruction"] for line in pool.read_text().splitlines()]


async def peer(rows: list[str], url: str) -> list[str]:
    """A loop as one would write it: what it has for each row."""
    from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError

    semaphore = asyncio.Semaphore(IN_FLIGHT)
    http = DefaultAioHttpClient()
    client = AsyncOpenAI(api_key="none", base_url=url, max_retries=PEER_RETRIES, http_client=http)

    async def ask(text: str) -> str | None:
        async with semaphore:
            with contextlib.suppress(OpenAIError, ValueError):
                reply = await client.chat.completions.create(
                    model=MODEL, max_completion_tokens=BOUND, messages=[{"role": "user", "content": text}]
                )
                return reply.choices[0].message.content or ""
            return None

    async with client:
        said = await asyncio.gather(*(ask(text) for text in rows))
    return [text for text in said if text is not None]


# The estimate and the bill


def interval(rows: int, seed: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, run = folder / "pool.jsonl", folder / "run"
        make_pool(pool, rows, MOST_WORDS)
        with serving(folder, latency=0.2, seed=seed) as server:
            words = asking(pool, run, server.url, "--yes", "--json")
            before = json.loads(distill("estimate", *words).stdout)["cost_usd"]
            after = json.loads(distill("estimate", *words, "--pilot", PILOT).stdout)["cost_usd"]
            pilot = server.billed()
            distill("generate", *words[:-1], "--quiet")
            bill = server.billed()
    told = [(before, bill), (after, bill - pilot)]
    shown = [f"{r['expected']:7.2f} {r['low']:7.2f} {r['high']:7.2f} {b:7.2f}" for r, b in told]
    holds = ["yes" if r["low"] <= b <= r["high"] else "NO" for r, b in told]
    return f"{seed:4} {rows:6} " + "  ".join(f"{s} {h:>5}" for s, h in zip(shown, holds, strict=True))


# The cap


def cap(rows: int, after: float | None) -> str:
    """after: the share of the rows that the budget would buy, from which on the bound is ignored; None: it
    is kept to."""
    budget = round(rows * (MEAN_USED * PRICE_OUT) / 1e6 / 2, 4)
    config: dict[str, Any] = {"latency": 0.3, "latency_sigma": 0.5}
    if after is not None:
        config |= {"overrun_after": round(rows / 2 * after), "overrun": OVERRUN}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, run = folder / "pool.jsonl", folder / "run"
        make_pool(pool, rows, MOST_WORDS)
        with serving(folder, **config) as server:
            words = asking(pool, run, server.url, "--budget", budget, "--quiet")
            started = time.monotonic()
            done = distill("generate", *words)
            seconds, counts, billed = time.monotonic() - started, server.counts(), server.billed()
    request = (BOUND * (1 if after is None else OVERRUN) * PRICE_OUT + 200 * PRICE_IN) / 1e6
    passed = max(0.0, billed - budget)
    kept = "kept" if after is None else f"{after:.0%}"
    return (
        f"{kept:>6} {rows:6} {seconds:8.1f} {done.returncode:4} {counts['billed']:6} {budget:8.3f} "
        f"{billed:8.3f} {passed:8.4f} {request:8.4f} {passed / request:8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=3000)
    parts, ways = ["limit", "interval", "cap"], ["upfront", "larger", "actual"]
    parser.add_argument("--what", nargs="+", default=parts, choices=parts)
    parser.add_argument("--ways", nargs="+", default=["upfront", "actual"], choices=ways)
    parser.add_argument("--bucket", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if "limit" in options.what:
        print(
            "client way      bucket   rows  seconds  until   used    429s   kept  empty  billed", flush=True
        )
        for way in options.ways:
            for client in ("ours", "peer"):
                print(limit(client, way, options.rows, options.bucket), flush=True)
    if "interval" in options.what:
        told = "expected     low    high    bill holds"
        print(f"\nseed   rows {told:>38}  {told:>38}\n{'before':>28} {'after a pilot':>48}", flush=True)
        for seed in range(options.seeds):
            print(interval(options.rows, seed), flush=True)
    if "cap" in options.what:
        print("\n bound   rows  seconds exit  asked      cap   billed   passed  request    ratio", flush=True)
        for after in (None, 0.3, 0.6, 0.9):
            print(cap(options.rows, after), flush=True)


if __name__ == "__main__":
    main()
