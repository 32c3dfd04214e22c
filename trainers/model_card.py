"""After the last step: README.md of the result, and the result itself at the top of its folder."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trainers.config import Training
from trainers.launcher import title_of
from trainers.memory import gib
from trainers.rows import steps_of
from trainers.run_folder import Folder, write

VERSIONS = ("torch", "transformers", "accelerate", "deepspeed", "peft", "liger-kernel", "flash-attn")
MFU = "counted are 6 operations a token for each weight that learns, 4 for one that does not, no attention"
SAMPLE_SHOWN = 600  # characters
Table = Mapping[str, object]


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def card(
    title: str,
    summary: str,
    base: str,
    sections: Mapping[str, Table],
    samples: Sequence[Mapping[str, str]] = (),
    tags: Sequence[str] = (),
) -> str:
    """Markdown with the head that model hubs read. sections: tables by heading."""
    head = "\n".join(["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"])
    parts = [head, f"# {title}", summary, f"Base model: `{base}`.", "![Learning curves](curves.png)"]
    for heading, table in sections.items():
        lines = ["| | |", "| --- | --- |"]
        for name, value in table.items():
            cell = f"{value:.4f}" if isinstance(value, float) and value >= 0.01 else str(value)
            cell = cell.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {name} | {cell} |")
        parts += [f"## {heading}", "\n".join(lines)]
    if samples:
        parts.append("## Answers to held-out prompts\n\nGreedy, not chosen.")
    for sample in samples:
        parts += [f"{name}:\n\n{_fenced(sample[name])}" for name in ("prompt", "answer", "reference")]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str) -> str:
    shown = text if len(text) <= SAMPLE_SHOWN else text[:SAMPLE_SHOWN] + "…"
    fence = "```"
    while fence in shown:
        fence += "`"
    return f"{fence}text\n{shown}\n{fence}"


HIDDEN = {
    "data",
    "out",
    "model",
    "master",
    "node_rank",
}  # said elsewhere on the card, or of this machine alone


def finish(
    recipe: Training,
    folder: Folder,
    rows: int,
    about: str,
    sections: Mapping[str, Table],
    samples: Sequence[Mapping[str, str]],
    tag: str,
) -> None:
    """rows: of one pass over the data. about: what the model is, in Markdown. sections: of the card."""
    sections = {**sections, "Versions": versions()}
    text = card(title_of(recipe), about, recipe.model, sections, samples, ["distill", tag])
    (folder.result / "README.md").write_text(text, encoding="utf-8")
    folder.publish()
    write(folder.finished, {"steps": steps_of(rows, recipe.batch, recipe.epochs), **sections})
    folder.clear()


def recipe_table(recipe: Training) -> dict[str, Any]:
    told = recipe.model_dump(mode="json", exclude=HIDDEN)
    return told | {"micro_batch": recipe.rows_at_once, "accumulation": recipe.accumulation}


def file_table(recipe: Training) -> dict[str, str]:
    """The data's file, by which another can be told to be the same."""
    with recipe.data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": recipe.data.name, "sha256 of the file": f"`{digest}`"}


def speed(records: Sequence[Mapping[str, Any]], needed: float) -> dict[str, object]:
    """needed: bytes that the check of memory told. The first step of a process also prepares the others."""
    steps = [r for r in records if r["kind"] == "step"]
    if not steps:
        return {}
    later = steps[1:] or steps
    rates = [r["tokens"] / r["seconds"] for r in later]
    used = [r["mfu"] for r in later if r.get("mfu")]
    name = next((r["name"] for r in reversed(records) if r["kind"] == "device"), "CPU")
    product = next((r["flops"] for r in reversed(records) if r["kind"] == "device"), 0.0)
    counted = f"of {product / 1e12:,.0f} TFLOP/s, a product of 8192 x 8192 in bf16 there; {MFU}"
    peak = max((r.get("peak_memory", 0) for r in steps), default=0)
    return {
        "device": name,
        "tokens a second, median step": f"{statistics.median(rates):,.0f}",
        "MFU": f"{statistics.median(used):.1%} {counted}" if used else "unknown",
        "micro batches of the last step": steps[-1].get("micro_batches", "unknown"),
        "memory of a process, told": gib(needed),
        "memory of a process, used at most": gib(peak) if peak else "unknown",
    }


def losses(records: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The training's and the held-out losses."""
    steps = [r for r in records if r["kind"] == "step"]
    held = [r for r in records if r["kind"] == "held_out"]
    last = steps[-max(1, len(steps) // 10) :]
    found: dict[str, object] = {"steps": steps[-1]["step"] if steps else 0}
    if steps:
        found["training, mean of the last tenth"] = sum(r["loss"] for r in last) / len(last)
    if held:
        found["held out, before"] = held[0]["held_out_loss"]
        found["held out, at the end"] = held[-1]["held_out_loss"]
    return found
