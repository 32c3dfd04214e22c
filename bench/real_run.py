"""A reward model and a student of SmolLM2-135M on real data, with held-out figures and curves.

    DISTILL_DATA=... python bench/real_run.py OUT [--prompts 600] [--pairs 3] [--unseen 205]
                                                      [--rows 1000] [--length 256]

The reward model learns GPT-4's preferences on AlpacaEval (three pairs a prompt, so about four answers, unless
said) and is measured on prompts that it has not seen; the student learns Alpaca's rows. OUT gets both folders
(each with curves.png), and unseen.json. fp32, which is what CPUs without bf16 multiply fast.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEARNT_FROM = 600  # of the 805 prompts, at most; the others stay unseen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=LEARNT_FROM)
    parser.add_argument("--pairs", type=int, default=3, help="of a prompt")
    parser.add_argument("--unseen", type=int, default=205)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--length", type=int, default=256, help="tokens that the reward model reads")
    told = parser.parse_args()
    data, out = Path(os.environ["DISTILL_DATA"]), told.out
    out.mkdir(parents=True, exist_ok=True)

    pairs = comparisons(data, told.pairs)
    seen = written(out / "seen.jsonl", pairs[: min(told.prompts, LEARNT_FROM)])
    unseen = written(out / "unseen.jsonl", pairs[LEARNT_FROM : LEARNT_FROM + told.unseen])
    rows = written(out / "alpaca.jsonl", [alpaca(data, told.rows)])

    common = ["--model", "smollm2", "--precision", "fp32", "--epochs", "1"]
    small = ["--batch", "8", "--held-out", "0.1", "--max-length", str(told.length)]
    distill("train", "reward", "--data", seen, "--out", out / "reward", *common, *small)
    report = distill("evaluate", "reward", "--reward", out / "reward", "--data", unseen, "--json")
    (out / "unseen.json").write_text(report)
    few = ["--batch", "16", "--lr", "5e-5", "--held-out", "0.08", "--max-length", "256"]
    distill("train", "sft", "--data", rows, "--out", out / "sft", *common, *few)
    found = json.loads(report)
    print(f"unseen pairs: accuracy {found['accuracy']:.3f}, the longer wins {found['length_baseline']:.3f}")


def comparisons(data: Path, pairs: int) -> list[list[dict[str, str]]]:
    """Each prompt's pairs, the better first, prompts in an order drawn once and for all. No ties."""
    drawn, by_prompt = random.Random(0), defaultdict(list)
    with gzip.open(data / "alpacaeval_gpt4_preferences.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["preference"] in (1, 2):
                by_prompt[row["prompt"]].append(row)
    prompts = sorted(by_prompt)
    drawn.shuffle(prompts)
    found = []
    for prompt in prompts:
        drawn.shuffle(by_prompt[prompt])
        found.append([as_pair(row) for row in by_prompt[prompt][:pairs]])
    return found


def as_pair(row: dict[str, Any]) -> dict[str, str]:
    first, second = row["output_1"], row["output_2"]
    better, worse = (first, second) if row["preference"] == 1 else (second, first)
    return {"user_input": row["prompt"], "completion_a": better, "completion_b": worse}


def alpaca(data: Path, count: int) -> list[dict[str, str]]:
    with gzip.open(data / "alpaca_52k.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return random.Random(7).sample(rows, count)


def written(path: Path, groups: Sequence[Sequence[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for group in groups for row in group))
    return path


def distill(*words: str | Path) -> str:
    """What the command printed; its progress goes to the terminal."""
    command = [sys.executable, "-P", "-m", "engine", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
