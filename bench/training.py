"""Training throughput and memory, beside TRL's trainers on the same rows.

    DISTILL_DATA=... python bench/training.py --peer PYTHON [--what sft|reward] [--rounds 3]
        [--precision fp32] [--model FOLDER]

SmolLM2-135M unless another is said, one process, length 256. PYTHON is an interpreter that has trl, which is
not among our layers. Both take the same rows once, in batches of the same size, and time themselves from the
beginning of a step to its end; the first step is left out. Useful tokens are those of rows, padding is none.
For the reward model a prompt has 4 answers; TRL is given the 6 pairs among them. Which answer is better is
made up: only speed is measured. Memory is the most that any process of the run had in RAM.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STEPS, LENGTH, ANSWERS = 4, 256, 4
BATCH = {"sft": 8, "reward": 2}  # rows, or prompts
AT_ONCE = {"sft": 4, "reward": 2}
PAIRS = ANSWERS * (ANSWERS - 1) // 2
MODELS = ("gpt4", "vicuna-13b", "alpaca-7b", "text_davinci_003")


@dataclass(frozen=True)
class Measured:
    """useful: tokens a second for sft, prompts a second for reward. peak: GB. cpu: seconds of the whole run,
    its start and end included, which other work on the machine changes little."""

    useful: float
    peak: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--what", choices=list(BATCH), default="sft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--model", metavar="FOLDER")
    told = parser.parse_args()
    data = Path(os.environ["DISTILL_DATA"])
    found: dict[str, list[Measured]] = {"distill": []} | ({"trl": []} if told.peer else {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = told.model or unpacked(folder)
        ours, theirs = (sft_rows if told.what == "sft" else reward_rows)(data, folder, model)
        for number in range(told.rounds):
            run = folder / f"run-{number}"
            found["distill"].append(our_run(told.what, ours, model, run, told.precision))
            if told.peer:
                found["trl"].append(peer_run(told.peer, told.what, theirs, model, told.precision))
            print({who: rounds[-1] for who, rounds in found.items()}, file=sys.stderr, flush=True)
    show(told.what, told.precision, found)


def unpacked(folder: Path) -> str:
    from trainers.models import smollm2_folder

    return str(smollm2_folder(folder))


def sft_rows(data: Path, folder: Path, model: str) -> tuple[Path, Path]:
    """The first rows of Alpaca that fit, as ours and as TRL's prompt and completion."""
    from store.records import alpaca_prompt
    from trainers.models import tokenizer_of

    tokenizer, rows = tokenizer_of(model), []
    with gzip.open(data / "alpaca_52k.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            asked = alpaca_prompt(row["instruction"], row["input"])
            fits = len(tokenizer(asked + row["output"])["input_ids"]) < LENGTH
            if row["output"].strip() and fits:
                rows.append((row, {"prompt": asked, "completion": row["output"]}))
            if len(rows) == STEPS * BATCH["sft"]:
                break
    return written(folder / "ours.jsonl", (r for r, _ in rows)), written(
        folder / "theirs.jsonl", (r for _, r in rows)
    )


def reward_rows(data: Path, folder: Path, model: str) -> tuple[Path, Path]:
    """AlpacaEval's instructions with four models' answers that fit, and all pairs among them."""
    from trainers.models import tokenizer_of

    tokenizer = tokenizer_of(model)
    outputs = [read(data / f"alpacaeval_outputs/{name}.jsonl.gz") for name in MODELS]
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for rows in zip(*outputs, strict=True):
        asked, texts = rows[0]["instruction"], [row["output"] for row in rows]
        longest = max(len(tokenizer(asked + text)["input_ids"]) for text in texts)
        if longest > LENGTH - 64 or len(set(texts)) < ANSWERS:  # the template takes some
            continue
        scored = [{"model": str(n), "text": text, "score": n} for n, text in enumerate(texts)]
        ours.append({"prompt": asked, "answers": scored})
        theirs.extend(pair(asked, better, worse) for worse, better in combinations(texts, 2))
        if len(ours) == STEPS * BATCH["reward"]:
            break
    return written(folder / "ours.jsonl", ours), written(folder / "theirs.jsonl", theirs)


def pair(asked: str, better: str, worse: str) -> dict[str, Any]:
    """As TRL takes it; length, of both, for its grouping."""
    said = {"prompt": ("user", asked), "chosen": ("assistant", better), "rejected": ("assistant", worse)}
    turns = {name: [{"role": role, "content": text}] for name, (role, text) in said.items()}
    return turns | {"length": len(better) + len(worse) + 2 * len(asked)}


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return sorted((json.loads(line) for line in file), key=lambda row: str(row["instruction"]))


def written(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def our_run(what: str, rows: Path, model: str, out: Path, precision: str) -> Measured:
    size = ["--batch", str(BATCH[what]), "--micro-batch", str(AT_ONCE[what]), "--max-length", str(LENGTH)]
    once = ["--epochs", "1", "--held-out", "0", "--precision", precision, "--quiet"]
    where = ["--data", str(rows), "--model", model, "--out", str(out)]
    own = ["--samples", "0"] if what == "sft" else []
    command = [sys.executable, "-P", "-m", "engine", "train", what, *where, *size, *once, *own]
    peak, cpu, _ = finished(command)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = [s for s in steps if s["kind"] == "step" and s["step"] > 1]
    seconds = sum(s["seconds"] for s in timed)
    amount = sum(s["tokens"] for s in timed) if what == "sft" else len(timed) * BATCH[what]
    return Measured(amount / seconds, peak, cpu)


def peer_run(python: str, what: str, rows: Path, model: str, precision: str) -> Measured:
    pairs = 1 if what == "sft" else PAIRS
    at_once = AT_ONCE[what] if what == "sft" else AT_ONCE[what] * ANSWERS // 2  # as many texts as ours
    sizes = [str(at_once), str(BATCH[what] * pairs // at_once), str(LENGTH)]
    command = [python, "-P", str(ROOT / "bench/trl_peer.py"), what, str(rows), model, precision, *sizes]
    peak, cpu, said = finished(command)
    told = json.loads(said.strip().splitlines()[-1])
    amount = told["tokens"] if what == "sft" else told["steps"] * BATCH[what]
    return Measured(amount / told["seconds"], peak, cpu)


def finished(command: list[str]) -> tuple[float, float, str]:
    """(GB at most of any of its processes, CPU seconds of all, what it printed)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, log):
            file.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
        return usage.ru_maxrss * 1024 / 1e9, usage.ru_utime + usage.ru_stime, out.read()


def show(what: str, precision: str, found: dict[str, list[Measured]]) -> None:
    unit = "tokens/s" if what == "sft" else "prompts/s"
    print(f"{what}, {precision}\ntrainer  {unit:>10}  of trl  peak GB   CPU s   rounds")
    middle = {who: statistics.median(r.useful for r in rounds) for who, rounds in found.items()}
    for who, rounds in found.items():
        peak = statistics.median(r.peak for r in rounds)
        cpu = statistics.median(r.cpu for r in rounds)
        each = " ".join(f"{r.useful:.3g}" for r in rounds)
        ratio = f"{middle[who] / middle['trl']:.2f}" if "trl" in middle else "-"
        print(f"{who:<8} {middle[who]:>10.3g}  {ratio:>6}  {peak:>7.1f}  {cpu:>6.0f}   {each}")


if __name__ == "__main__":
    main()
