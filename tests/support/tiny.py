"""A student of two layers with random weights and a tokenizer of single bytes, and rows for it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import ROOT, environment

SECONDS = 600  # that nothing takes, on a busy machine either
WORDS = ("sea", "moon", "river", "stone", "cloud", "lamp", "bird", "road")
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# Files of which no row can be used.
ODD = {
    "empty": b"",
    "blank": b"\n\n",
    "other columns": b'{"a": 1}\n{"a": 2}\n',
    "binary": bytes(range(128, 256)),
    "nul bytes": b"\0" * 200,
    "no JSON": b"hello\nworld\n",
    "torn": b'{"instruction": "a", "output": "b',
}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = ["<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={sign: n for n, sign in enumerate(signs)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHATML
    )


def model(kind: str = "llama") -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 512}
    if kind == "opt":
        config = OPTConfig(**common, **ends, ffn_dim=64, word_embed_proj_dim=32, dropout=0.1)
        return OPTForCausalLM(config)
    return LlamaForCausalLM(LlamaConfig(**common, **ends, intermediate_size=64, num_key_value_heads=2))


def student(folder: Path, kind: str = "llama") -> Path:
    tokenizer().save_pretrained(folder)
    model(kind).save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"Say {WORDS[n % 8]}.",
            "input": f"{n} times" if n % 3 == 0 else "",
            "output": f"{WORDS[n % 8]} " * (1 + n % 5),
        }
        for n in range(count)
    ]


def data(path: Path, count: int = 49) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows(count)))
    return path


def words(data: Path, model: Path, out: Path, *more: object, kind: str = "sft") -> list[str]:
    """The words of a short training: 6 steps of 8 rows, a checkpoint at every second."""
    usual = {
        "--data": data, "--model": model, "--out": out, "--batch": 8, "--epochs": 1, "--lr": 1e-3,
        "--max-length": 300, "--precision": "fp32", "--samples": 1, "--save-every": 2, "--eval-every": 3,
        "--warmup": 0,
    }  # fmt: skip
    if kind != "sft":
        del usual["--samples"]
    flags = [str(word) for pair in usual.items() for word in pair]
    return [sys.executable, "-P", "-m", "engine", "train", kind, *flags, *map(str, more)]


def env() -> dict[str, str]:
    return environment(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        PYTHONWARNINGS="ignore",
        TORCH_EXTENSIONS_DIR=os.devnull,  # nothing can be compiled, and nothing needs to be
    )


def train(*given: Any, code: int = 0, kind: str = "sft") -> str:
    """Runs a training to its end; what it said on stderr."""
    command = words(*given, kind=kind)
    ended, _, said = distill(*command[command.index("train") :])
    assert ended == code, said[-3000:] + log(given[2])
    assert "Traceback" not in said, said
    return said


def distill(*words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process, which has read torch already; those that
    train are processes of their own, as ever."""
    from engine.cli.app import main

    out, told = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
    ):
        patch.setattr("sys.argv", ["distill", *map(str, words)])
        patch.setattr("os.environ", env() | {"PYTHONPATH": str(ROOT)})
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), told.getvalue()


def log(out: Path) -> str:
    path = out / "training" / "log.txt"
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def measured(out: Path) -> dict[tuple[str, int], tuple[float, ...]]:
    """(kind, step) -> loss, and the gradient's norm of a step."""
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for line in (out / "metrics.jsonl").read_bytes().splitlines():
        record = orjson.loads(line)
        values = [record.get(name) for name in ("loss", "grad_norm", "held_out_loss")]
        found[record["kind"], record["step"]] = tuple(v for v in values if v is not None)
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Reward models: answers of one letter; "a" is better than "b" and "b" than "c", whatever their length.

LETTERS = {"a": 9, "b": 5, "c": 1}


def rankings(count: int) -> list[dict[str, Any]]:
    """K = 3, as `export --format scores` writes it."""
    return [
        {
            "prompt": f"Say {WORDS[n % 8]} {n}.",
            "answers": [
                {"model": letter, "text": letter * (2 + (n * 7 + score) % 9), "score": score}
                for letter, score in LETTERS.items()
            ],
        }
        for n in range(count)
    ]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in found))
    return path


def reward_folder(folder: Path, kind: str = "llama") -> Path:
    """A reward model with random weights, as `train reward` publishes it."""
    from transformers import AutoModelForSequenceClassification

    from trainers.run_folder import About, write_about

    student(folder, kind)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=2)
    scorer.save_pretrained(folder)
    write_about(About("alpaca", 300), folder)
    return folder
