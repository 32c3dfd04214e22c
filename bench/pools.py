"""Pools for the benchmarks: prompts of a known number of words, no two alike."""

import json
import random
from pathlib import Path

WORDS = ["river", "stone", "explain", "quick", "number", "garden", "why", "write", "small", "list"]
LEAST_WORDS = 22


def make_pool(path: Path, rows: int, most_words: int) -> None:
    """A word is about one token; the chat and the template add some."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            words = " ".join(rng.choices(WORDS, k=rng.randint(LEAST_WORDS, most_words)))
            file.write(
                json.dumps({"instruction": f"Task {number}: {words}", "input": "", "output": ""}) + "\n"
            )
