"""What reinforcement learning is given: prompts, and a reward. No torch."""

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from store.errors import UsageError, first_line
from store.files import whole
from store.pool import as_instruction
from store.records import Instruction
from trainers.run_folder import read_about

PROMPTS = "prompts.jsonl"
Scores = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass
class Prompts:
    """texts: as the reward reads them. ids: as the student is asked. held_out: places."""

    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    read: int = 0
    again: int = 0
    too_long: int = 0
    bad: list[str] = field(default_factory=list)
    template: str = ""

    @property
    def trained(self) -> list[int]:
        held = {*self.held_out}
        return [n for n in range(len(self.texts)) if n not in held]

    def save(self, folder: Path) -> str:
        """Returns a digest of it."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": text, "ids": ids} for text, ids in zip(self.texts, self.ids, strict=True)]
        lines = b"".join(orjson.dumps(row) + b"\n" for row in [*rows, {"held_out": self.held_out}])
        with whole(folder / PROMPTS) as file:
            file.write(lines)
        return hashlib.sha256(lines).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> "Prompts":
        *rows, last = map(orjson.loads, (folder / PROMPTS).read_bytes().splitlines())
        return cls([row["prompt"] for row in rows], [row["ids"] for row in rows], last["held_out"])


def prompt_in(raw: dict[str, Any]) -> Instruction | str:
    """Of a pool's row, or of one with a `prompt` (comparisons, scores, candidates)."""
    prompt = raw.get("prompt", raw.get("user_input"))
    if isinstance(prompt, str) and prompt.strip() and "instruction" not in raw:
        return Instruction("", prompt, "", ".")
    item = as_instruction(raw, 0)
    return item if isinstance(item, str) else Instruction("", item.instruction, item.input, ".")


def is_function(reward: str) -> bool:
    return ":" in reward and not Path(reward).is_dir()


def check_reward(reward: str) -> None:
    """Raises UsageError where it is neither a reward model's folder nor a function."""
    if is_function(reward):
        function_of(reward)
    else:
        read_about(Path(reward))


def function_of(name: str) -> Scores:
    """A Python function of (prompts, answers) that returns a number for each. Raises UsageError."""
    where, _, attribute = name.rpartition(":")
    if where.endswith(".py") and not Path(where).is_file():
        raise UsageError(f"--reward {name}: there is no file {where}")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except Exception as error:  # whatever somebody's code says
        told = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"--reward {name}: {where} cannot be imported ({told})") from error
    found = getattr(module, attribute, None)
    if not inspect.isfunction(found):
        raise UsageError(f"--reward {name}: {where} has no function {attribute}")
    function: Scores = found
    return function
