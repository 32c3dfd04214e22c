"""The model card: README.md of the result, made of what is known and nothing else."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("torch", "transformers", "accelerate", "deepspeed", "peft")
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
    parts = [_head(tags), f"# {title}", summary, f"Base model: `{base}`.", "![Learning curves](curves.png)"]
    for heading, table in sections.items():
        parts += [f"## {heading}", _table(table)]
    if samples:
        parts.append("## Answers to held-out prompts\n\nGreedy, not chosen.")
        parts += [_sample(sample) for sample in samples]
    return "\n\n".join(parts) + "\n"


def _head(tags: Sequence[str]) -> str:
    return "\n".join(["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _table(table: Table) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in table.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) and value >= 0.01 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _sample(sample: Mapping[str, str]) -> str:
    return "\n\n".join(f"{name}:\n\n{_fenced(sample[name])}" for name in ("prompt", "answer", "reference"))


def _fenced(text: str) -> str:
    shown = text if len(text) <= SAMPLE_SHOWN else text[:SAMPLE_SHOWN] + "…"
    fence = "```"
    while fence in shown:
        fence += "`"
    return f"{fence}text\n{shown}\n{fence}"
