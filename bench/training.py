"""Training throughput and memory, beside TRL's trainers on the same rows.

    DISTILL_DATA=... python bench/training.py --peer PYTHON [--what sft|reward] [--rounds 3]
        [--precision fp32] [--model FOLDER | --shape 1b|7b|opt-1.3b] [--device cuda] [--lora 16] [--dry-run]

One process. PYTHON is an interpreter that has trl, which is not among our layers. Both take the same rows
once, in batches of the same size, and time themselves from the beginning of a step to its end, when the
device has finished; the first steps are left out. Useful tokens are those of rows, padding is none. Which
answer is better is made up: only speed is measured.

cpu: SmolLM2-135M unless another is said, length 256. For the reward model a prompt has 4 answers; TRL is
given the 6 pairs among them. Memory is the most that any process of the run had in RAM.

cuda: bf16, length 512, batches of 128 rows or 16 prompts of 3 answers; a shape has random weights. Ours is
as the command is, with no flag for speed. TRL is set for speed: packed, FlashAttention, fused AdamW, fp32
weights under autocast as ours (bf16 ones under LoRA, as ours), Liger where it is installed. Memory is what
tensors took. MFU counts 6 operations a token and weight (4 for a frozen one) of a product that is measured
there.
--dry-run: the same on a tiny shape and on the CPU, to see that it runs.
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

MODELS = ("gpt4", "vicuna-13b", "alpaca-7b", "text_davinci_003")
WORDS = {"vocab_size": 49_152, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {  # layers, sizes, heads
    "1b": {"num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632,
           "num_attention_heads": 32, "num_key_value_heads": 4},
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
           "num_attention_heads": 32},
    "opt-1.3b": {"num_hidden_layers": 24, "hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192,
                 "num_attention_heads": 32},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is trained. batch, at_once: rows, or prompts; at_once None: as the trainer chooses. left_out:
    steps that are not counted."""

    steps: int
    left_out: int
    length: int
    answers: int
    batch: dict[str, int]
    at_once: dict[str, int] | None

    @property
    def pairs(self) -> int:
        return self.answers * (self.answers - 1) // 2


PLANS = {
    "cpu": Plan(4, 1, 256, 4, {"sft": 8, "reward": 2}, {"sft": 4, "reward": 2}),
    "cuda": Plan(12, 3, 512, 3, {"sft": 128, "reward": 16}, None),
    "dry": Plan(5, 3, 512, 3, {"sft": 16, "reward": 4}, None),
}


@dataclass(frozen=True)
class Measured:
    """useful: tokens a second for sft, prompts a second for reward. peak: GB. cpu: seconds of the whole run,
    its start and end included, which other work on the machine changes little. mfu: where it is known."""

    useful: float
    peak: float
    cpu: float
    mfu: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--what", choices=["sft", "reward"], default="sft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--tokenizer", metavar="FOLDER", help="for a shape; SmolLM2's, unless said")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lora", type=int, metavar="RANK")
    parser.add_argument("--dry-run", action="store_true")
    told = parser.parse_args()
    told.plan = PLANS["dry" if told.dry_run else told.device]
    told.precision = told.precision or ("fp32" if told.device == "cpu" else "bf16")
    data = Path(os.environ["DISTILL_DATA"])
    found: dict[str, list[Measured]] = {"distill": []} | ({"trl": []} if told.peer else {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shape = "tiny" if told.dry_run else told.shape
        told.model = made(folder, shape, told.tokenizer) if shape else told.model or unpacked(folder)
        ours, theirs = (sft_rows if told.what == "sft" else reward_rows)(data, folder, told.model, told.plan)
        for number in range(told.rounds):
            found["distill"].append(our_run(told, ours, folder / f"run-{number}"))
            if told.peer:
                found["trl"].append(peer_run(told, theirs))
            print({who: rounds[-1] for who, rounds in found.items()}, file=sys.stderr, flush=True)
    show(told.what, told.precision, found)


def made(folder: Path, shape: str, tokenizer: str | None) -> str:
    """A folder with random weights in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    from trainers.models import tokenizer_of

    torch.manual_seed(0)
    kind, config = (OPTForCausalLM, OPTConfig) if shape.startswith("opt") else (LlamaForCausalLM, LlamaConfig)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = kind(config(**WORDS, **SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=2))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / shape)
    tokenizer_of(tokenizer or unpacked(folder)).save_pretrained(folder / shape)
    return str(folder / shape)


def unpacked(folder: Path) -> str:
    from trainers.models import smollm2_folder

    return str(smollm2_folder(folder))


def sft_rows(data: Path, folder: Path, model: str, plan: Plan) -> tuple[Path, Path]:
    """The first rows of Alpaca that fit, as ours and as TRL's prompt and completion."""
    from store.records import alpaca_prompt
    from trainers.models import tokenizer_of

    tokenizer, rows = tokenizer_of(model), []
    with gzip.open(data / "alpaca_52k.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            asked = alpaca_prompt(row["instruction"], row["input"])
            fits = len(tokenizer(asked + row["output"])["input_ids"]) < plan.length
            if row["output"].strip() and fits:
                rows.append((row, {"prompt": asked, "completion": row["output"]}))
            if len(rows) == plan.steps * plan.batch["sft"]:
                break
    return written(folder / "ours.jsonl", (r for r, _ in rows)), written(
        folder / "theirs.jsonl", (r for _, r in rows)
    )


def reward_rows(data: Path, folder: Path, model: str, plan: Plan) -> tuple[Path, Path]:
    """AlpacaEval's instructions with four models' answers that fit, and all pairs among them."""
    from trainers.models import tokenizer_of

    tokenizer = tokenizer_of(model)
    outputs = [read(data / f"alpacaeval_outputs/{name}.jsonl.gz") for name in MODELS[: plan.answers]]
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for rows in zip(*outputs, strict=True):
        asked, texts = rows[0]["instruction"], [row["output"] for row in rows]
        longest = max(len(tokenizer(asked + text)["input_ids"]) for text in texts)
        if longest > plan.length - 64 or len(set(texts)) < plan.answers:  # the template takes some
            continue
        scored = [{"model": str(n), "text": text, "score": n} for n, text in enumerate(texts)]
        ours.append({"prompt": asked, "answers": scored})
        theirs.extend(pair(asked, better, worse) for worse, better in combinations(texts, 2))
        if len(ours) == plan.steps * plan.batch["reward"]:
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


def our_run(told: argparse.Namespace, rows: Path, out: Path) -> Measured:
    what, plan = told.what, told.plan
    size = ["--batch", str(plan.batch[what]), "--max-length", str(plan.length)]
    if plan.at_once:
        size += ["--micro-batch", str(plan.at_once[what])]
    once = ["--epochs", "1", "--held-out", "0", "--precision", told.precision, "--quiet"]
    where = ["--data", str(rows), "--model", told.model, "--out", str(out)]
    own = ["--samples", "0"] if what == "sft" else []
    own += ["--lora", str(told.lora)] if told.lora else []
    often = ["--save-every", "1000000"] if told.device == "cuda" else []
    command = [sys.executable, "-P", "-m", "engine", "train", what, *where, *size, *once, *own, *often]
    peak, cpu, _ = finished(command)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = [s for s in steps if s["kind"] == "step" and s["step"] > plan.left_out]
    seconds = sum(s["seconds"] for s in timed)
    amount = sum(s["tokens"] for s in timed) if what == "sft" else len(timed) * plan.batch[what]
    used = [s["mfu"] for s in timed if s.get("mfu")]
    if told.device == "cuda":
        peak = max(s["peak_memory"] for s in timed) / 1e9
    return Measured(amount / seconds, peak, cpu, statistics.median(used) if used else None)


def peer_run(told: argparse.Namespace, rows: Path) -> Measured:
    what, plan = told.what, told.plan
    settings = {
        "what": what, "rows": str(rows), "model": told.model, "precision": told.precision, "lora": told.lora,
        "most": plan.length, "batch": plan.batch[what] * (1 if what == "sft" else plan.pairs),
        "cuda": told.device == "cuda", "on_gpu": told.device == "cuda" and not told.dry_run,
        "left_out": plan.left_out,
        # As many texts as ours; on a GPU what was fastest in 80 GB.
        "at_once": plan.at_once[what] * (1 if what == "sft" else plan.answers // 2) if plan.at_once else None,
    }  # fmt: skip
    peak, cpu, said = finished([told.peer, "-P", str(ROOT / "bench/trl_peer.py"), json.dumps(settings)])
    measured = json.loads(said.strip().splitlines()[-1])
    amount = measured["tokens"] if what == "sft" else measured["steps"] * plan.batch[what]
    return Measured(amount / measured["seconds"], measured["peak"] / 1e9 or peak, cpu)


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
    print(f"{what}, {precision}\ntrainer  {unit:>10}  of trl  MFU     peak GB   CPU s   rounds")
    middle = {who: statistics.median(r.useful for r in rounds) for who, rounds in found.items()}
    for who, rounds in found.items():
        peak = statistics.median(r.peak for r in rounds)
        cpu = statistics.median(r.cpu for r in rounds)
        used = [r.mfu for r in rounds if r.mfu is not None]
        each = " ".join(f"{r.useful:.3g}" for r in rounds)
        ratio = f"{middle[who] / middle['trl']:.2f}" if "trl" in middle else "-"
        share = f"{statistics.median(used):.1%}" if used else "-"
        print(f"{who:<8} {middle[who]:>10.4g}  {ratio:>6}  {share:<6}  {peak:>7.1f}  {cpu:>6.0f}   {each}")


if __name__ == "__main__":
    main()
