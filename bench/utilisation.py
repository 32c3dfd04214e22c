"""Utilisation: how much of a declared limit is used, beside the openai package.

    python bench/utilisation.py [--buckets 1 60] [--ways upfront larger actual] [--peer]

The provider of the tests on loopback: median latency 1 s, 3,000 requests and 1.2 million
tokens a minute, 2 % faults, max_tokens 512, replies of 200. The ideal is what its buckets
allow for what it charged, with the buckets full at the start. `ratio` takes the time of the
whole process, `asking` that from the first request to the end (both with the canary and the
last reply's latency); the clock is the machine's monotonic one. The peer is AsyncOpenAI with
64 in flight and its own retries.
"""

import argparse
import asyncio
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RPM, TPM = 3000, 1_200_000
ROWS = {1: 3000, 60: 9000}
PEER_IN_FLIGHT, PEER_RETRIES = 64, 20
FAULTS = {
    "p_500": 0.006, "p_503": 0.004, "p_reset_before": 0.003, "p_reset_after": 0.003,
    "p_truncate": 0.002, "p_malformed": 0.002,
}  # fmt: skip


def config(bucket: int, way: str) -> dict[str, Any]:
    limits = {"rpm": RPM, "tpm": TPM, "bucket_seconds": bucket, "charge": way}
    return {"mean_tokens": 200, "latency": 1.0, "latency_sigma": 0.3, **limits, **FAULTS}


def make_pool(path: Path, rows: int) -> None:
    """DISTILL_DATA's Alpaca rows where they are at hand, else made-up ones of such lengths."""
    data = os.environ.get("DISTILL_DATA")
    if data:
        with gzip.open(Path(data) / "alpaca_52k.jsonl.gz", "rt") as file:
            path.write_text("".join(line for line, _ in zip(file, range(rows), strict=False)))
        return
    text = "Explain in a few words why the following number is of interest to somebody: "
    path.write_text("".join(json.dumps({"instruction": text + str(n)}) + "\n" for n in range(rows)))


def ours(pool: Path, url: str, run: Path) -> None:
    command = [sys.executable, "-P", "-m", "engine", "generate", str(pool), "--run", str(run)]
    flags = ["--model", "teacher", "--base-url", url, "--rpm", str(RPM), "--tpm", str(TPM), "--yes"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *flags], env=env, capture_output=True, check=True)


def peer(pool: Path, url: str, run: Path) -> None:
    rows = [json.loads(line)["instruction"] for line in pool.read_text().splitlines()]
    asyncio.run(_peer(rows, url))


async def _peer(rows: list[str], url: str) -> None:
    from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError

    semaphore = asyncio.Semaphore(PEER_IN_FLIGHT)
    client = AsyncOpenAI(
        api_key="none", base_url=url, max_retries=PEER_RETRIES, http_client=DefaultAioHttpClient()
    )

    async def ask(text: str) -> None:
        async with semaphore:
            for _ in range(3):  # malformed bodies are not retried by the package
                try:
                    await client.chat.completions.create(
                        model="teacher", max_tokens=512, messages=[{"role": "user", "content": text}]
                    )
                    return
                except (OpenAIError, ValueError):
                    continue

    async with client:
        await asyncio.gather(*(ask(text) for text in rows))


def measure(client: Callable[[Path, str, Path], None], bucket: int, way: str) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        pool, settings = Path(folder) / "pool.jsonl", Path(folder) / "config.json"
        make_pool(pool, ROWS[bucket])
        settings.write_text(json.dumps(config(bucket, way)))
        command = [sys.executable, "-m", "tests.support.provider", "--port", "0", "--config", str(settings)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert server.stdout
        url = server.stdout.readline().split()[-1]
        started = time.monotonic()
        client(pool, url, Path(folder) / "run")
        ended = time.monotonic()
        with urllib.request.urlopen(url.removesuffix("/v1") + "/counts?contents=0") as reply:
            counts = json.load(reply)
        server.terminate()
        server.wait()
    seconds, asking = ended - started, ended - counts["first_admission"]
    full = bucket / 60
    by_requests = counts["admitted"] / RPM - full
    by_tokens = counts["charged_tokens"] / TPM - full
    ideal = 60 * max(by_requests, by_tokens)
    refused = sum(counts["rejected"].values()) / counts["requests"]
    again = counts["billed"] - ROWS[bucket]
    ratios = f"{seconds / ideal:6.3f} {asking / ideal:7.3f}"
    return (
        f"{client.__name__:6} {bucket:6} {way:8} {ROWS[bucket]:6} {seconds:8.1f} {ideal:8.1f} "
        f"{ratios} {refused:7.2%} {again:6} {sum(counts['faults'].values()):6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 60], choices=[1, 60])
    ways = ["upfront", "larger", "actual"]
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--peer", action="store_true", help="the openai package as well")
    options = parser.parse_args()
    print("client bucket way        rows  seconds    ideal  ratio  asking    429s  again faults", flush=True)
    for bucket in options.buckets:
        for way in options.ways:
            for client in (ours, peer) if options.peer else (ours,):
                print(measure(client, bucket, way), flush=True)


if __name__ == "__main__":
    main()
