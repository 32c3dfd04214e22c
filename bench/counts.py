"""Estimate: its time on a pool, and its prompt tokens beside a direct count with tiktoken.

    DISTILL_DATA=... python bench/counts.py

The direct count shares nothing with the engine but tiktoken itself: it writes the prompt out
again and adds the published overhead (3 a message, 1 for the role, 3 for the reply).
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
HEAD = "Below is an instruction that describes a task"
PAIRED = ", paired with an input that provides further context"
TAIL = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"


def direct(pool: Path, encoding: str) -> int:
    sys.path.insert(0, str(ROOT))
    from engine.provider.tokens import load_encoding

    encoder, total = load_encoding(encoding), 0
    with gzip.open(pool, "rt") as file:
        for row in map(json.loads, file):
            given = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
            head = HEAD + (PAIRED if given else "") + TAIL
            text = f"{head}{row['instruction']}{given}\n\n### Response:"
            total += len(encoder.encode(text, disallowed_special=())) + 3 + 1 + 3
    return total


def main() -> None:
    pool = Path(os.environ["DISTILL_DATA"]) / "alpaca_52k.jsonl.gz"
    print(f"{'model':8} {'seconds':>8} {'estimate':>12} {'direct':>12}")
    for model, encoding in (("gpt-4", "cl100k_base"), ("gpt-4o", "o200k_base")):
        command = [str(ROOT / "bin/distill"), "estimate", str(pool), "--model", model, "--json"]
        times = []
        for _ in range(ROUNDS):
            started = time.monotonic()
            told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            times.append(time.monotonic() - started)
        counted = told["prompt_tokens"]
        print(f"{model:8} {statistics.median(times):8.1f} {counted:12,} {direct(pool, encoding):12,}")


if __name__ == "__main__":
    main()
