"""Memory does not grow with the pool: what a process needs is measured from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Row, asking, distill, stage, started, until, write_pool
from tests.support.provider import Provider

DUE = 2000  # rows that nobody has answered yet, spread over the pool


def mostly_answered(count: int) -> Iterator[Row]:
    for n in range(count):
        answer = "" if n % (count // DUE) == 0 else f"Answer {n}."
        yield {"instruction": f"Tell me about thing {n}.", "output": answer}


async def peak_of_generate(folder: Path, count: int, url: str) -> int:
    """The most memory that asking for what is left took, in kB."""
    pool = write_pool(folder / f"{count}.jsonl", mostly_answered(count))
    run = folder / f"run-{count}"
    ended = await distill(*asking(pool, run, url, command="import"), seconds=300)
    assert ended.code == 0, ended.err
    peak = 0

    async with started(*asking(pool, run, url, "--concurrency", 32, "--quiet"), fresh=True) as command:

        def ended_or_measured() -> bool:
            nonlocal peak
            peak = max(peak, high_water(command.process.pid))
            return command.process.returncode is not None

        await until(ended_or_measured, seconds=300, every=0.02)
        ended = await command.ended()
    assert ended.code == 0, ended.err
    found = await stage(run)
    assert (found["done"], found["total"]) == (count, count)
    return peak


def high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read a peak from")
async def test_ten_times_the_pool_takes_about_the_same_memory(tmp_path: Path) -> None:
    async with Provider().running() as p:
        small = await peak_of_generate(tmp_path, 20_000, p.base_url)
        large = await peak_of_generate(tmp_path, 200_000, p.base_url)
    assert p.counts.billed == 2 * DUE
    assert large < 1.3 * small, f"{small} kB for 20,000 rows, {large} kB for 200,000"
