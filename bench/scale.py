"""Scale: memory, start-up and ledger size for a pool of a million rows.

    python bench/scale.py [--rows 1000000] [--imported]

Against a static nginx: all rows but the last thousand are asked for real, then the run is
started again for the rest. Peak memory is VmHWM of the process; start-up is from the start
of the process to the first new request; it is repeated for a tenth of the rows. `--imported`:
the answers are taken in with `distill import`, which takes minutes less and tells of resuming alone.
"""

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nginx import reply_body, static_server
from pools import make_pool

MOST_WORDS = 60
ROOT = Path(__file__).resolve().parent.parent
LEFT = 1000
STARTS = 3
ANSWER = " word" * 200


@dataclass(frozen=True, slots=True)
class Measured:
    """One size of pool. Bytes are MB of 2**20."""

    rows: int
    seconds: float
    peak_mb: float
    resume_peak_mb: float
    start_seconds: float
    ledger_mb: float
    raw_mb: float


def collect(pool: Path, run: Path, url: str, limit: int) -> tuple[float, float]:
    """(start of the process in wall-clock time, peak memory in MB)."""
    return distill("generate", pool, run, url, "--limit", str(limit), "--yes", "--quiet")


def distill(what: str, file: Path, run: Path, url: str, *more: str) -> tuple[float, float]:
    flags = ["--model", "gpt-4o", "--base-url", url, "--concurrency", "64", *more]
    command = [sys.executable, "-P", "-m", "engine", what, str(file), "--run", str(run)]
    started = time.time()
    process = subprocess.Popen([*command, *flags], env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"distill failed with {status}")
    return started, used.ru_maxrss / 1024


def first_attempt_after(run: Path, moment: float) -> float:
    with sqlite3.connect(run / "ledger.db") as db:
        (sent,) = db.execute("SELECT min(sent_at) FROM attempts WHERE sent_at > ?", (moment,)).fetchone()
    return float(sent)


def take_in(pool: Path, run: Path, url: str, rows: int) -> tuple[float, float]:
    """The same as `collect`, with answers that were paid for elsewhere."""
    answered = pool.with_suffix(".answered.jsonl")
    with pool.open() as asked, answered.open("w") as file:
        for line, _ in zip(asked, range(rows), strict=False):
            file.write(line.replace('"output": ""', f'"output": "{ANSWER}"'))
    return distill("import", answered, run, url)


def measure(rows: int, folder: Path, url: str, imported: bool) -> Measured:
    pool, run = folder / f"{rows}.jsonl", folder / f"run-{rows}"
    make_pool(pool, rows, MOST_WORDS)
    started, peak = (take_in if imported else collect)(pool, run, url, rows - LEFT)
    seconds = time.time() - started
    starts, peaks = [], []
    for number in range(STARTS):
        begun, resumed_peak = collect(pool, run, url, rows - LEFT + (number + 1) * LEFT // STARTS)
        starts.append(first_attempt_after(run, begun) - begun)
        peaks.append(resumed_peak)
    size = (run / "ledger.db").stat().st_size
    raw = pool.stat().st_size + rows * len(reply_body())
    return Measured(rows, seconds, peak, max(peaks), statistics.median(starts), size / 2**20, raw / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--imported", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, static_server(1) as url:
        found = [measure(n, Path(name), url, options.imported) for n in (options.rows // 10, options.rows)]
    print(f"{'rows':>10} {'seconds':>8} {'peak MB':>8} {'resumed':>8} {'start s':>8} {'ledger/raw':>10}")
    for m in found:
        print(
            f"{m.rows:10,} {m.seconds:8.0f} {m.peak_mb:8.0f} {m.resume_peak_mb:8.0f} "
            f"{m.start_seconds:8.1f} {m.ledger_mb / m.raw_mb:10.2f}"
        )
    small, large = found
    peak = max(large.peak_mb, large.resume_peak_mb) / max(small.peak_mb, small.resume_peak_mb)
    print(f"peak memory of {large.rows:,} rows over that of {small.rows:,}: {peak:.2f}")


if __name__ == "__main__":
    main()
