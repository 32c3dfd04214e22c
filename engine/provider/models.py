"""What a model takes: parameters that it refuses, the name of its bound, how it thinks.

The facts are data (model_table.toml, with sources and dates), used by every role, by `estimate` and by
recipes. A model that no row knows takes everything and does not think; `--model-kind`,
`--reasoning-effort`, `--thinking-tokens` and `--omit` overrule the table.
"""

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from store.errors import UsageError

Kind = Literal["reasoning", "plain"]
SAMPLING = ("temperature", "top_p")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SWITCHES = ("reasoning_effort", "enable_thinking", "thinking")  # of chat templates
_LEVELS = ("effort", "type", "enabled", "thinking_level")
_BUDGETS = ("budget_tokens", "max_tokens", "thinking_budget")
_WORDS = {"disabled": "none", "off": "none", "enabled": "on", "adaptive": "on", "auto": "on"}
_SECOND_NUMBER = re.compile(r"(?<=\d)-(?=\d(?![a-z0-9]))")  # of a version: gpt-5-1, claude-opus-4-1


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the table. `effort`: what the model does when no effort is asked for; `efforts`: what
    may be asked for, empty where the parameter is unknown to it; `inside`: thinking counts against the
    bound on the output."""

    pattern: str = ""
    thinks: bool = False
    effort: str = "none"
    efforts: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    always_refuses: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    neutral: bool = True
    bound: str = "max_tokens"
    inside: bool = True
    source: str = ""
    date: str = ""

    @property
    def is_known(self) -> bool:
        return bool(self.source)


@dataclass(frozen=True, slots=True)
class Thinking:
    """How much a model thinks at an effort. room: tokens added to the bound on the answer; median,
    sigma: of the log-normal tokens of a reply; wide: by how many times the mean may be off (95 %)."""

    room: int = 0
    median: float = 0.0
    sigma: float = 0.0
    wide: float = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says of thinking. effort: none, or how hard; "on" where only that it is to think;
    None where it says nothing. tokens: of thinking that it allows."""

    effort: str | None = None
    tokens: int | None = None


UNKNOWN = Model()
GENERIC = Model(
    thinks=True,
    effort="medium",
    efforts=EFFORTS,
    refuses=SAMPLING,
    neutral=False,
    bound="max_completion_tokens",
)  # of --model-kind reasoning, for a name that says nothing


def find_model(name: str, kind: Kind | None = None) -> Model:
    """The row for a model's name, as overruled by `kind`."""
    row = _row_of(name)
    if kind == "plain":
        return UNKNOWN
    if kind == "reasoning" and not row.thinks:
        return GENERIC
    return row


@functools.lru_cache(maxsize=256)
def _row_of(name: str) -> Model:
    plain = _SECOND_NUMBER.sub(".", name.strip().lower().replace("_", "-"))
    return next((row for pattern, row in _rows() if pattern.search(plain)), UNKNOWN)


@functools.cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads((files("engine.provider") / "model_table.toml").read_text(encoding="utf-8"))


@functools.cache
def _rows() -> tuple[tuple[re.Pattern[str], Model], ...]:
    rows = []
    for entry in _table()["model"]:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        model = Model(**{**values, "date": str(entry["date"])})
        rows.append((re.compile(rf"(?<![a-z0-9])(?:{model.pattern})(?![a-z0-9])"), model))
    return tuple(rows)


@functools.cache
def thinking_at(effort: str) -> Thinking:
    """How much is thought at an effort, by the table; unknown words are taken for `medium`."""
    efforts = _table()["thinking"]
    return Thinking(**efforts.get(effort, efforts["medium"]))


def thinking_source() -> str:
    """Where the table's tokens of thinking come from."""
    source = _table()["thinking_source"]
    return f"{source['name']}, {source['date']}"


def wish_in(params: Mapping[str, Any]) -> Wish:
    """How much thinking a request's parameters ask for, in any server's words: reasoning_effort (OpenAI),
    reasoning (OpenRouter), thinking and output_config (Anthropic, DeepSeek, Z.ai), enable_thinking (Alibaba),
    chat_template_kwargs (vLLM, SGLang), think (Ollama), extra_body (Google)."""
    template, google = params.get("chat_template_kwargs"), params.get("extra_body")
    for path in ("google", "thinking_config"):
        google = google.get(path) if isinstance(google, Mapping) else None
    said = [
        params.get("reasoning_effort"), params.get("reasoning"), params.get("output_config"),
        params.get("thinking"), params.get("enable_thinking"), params.get("think"), google,
        *((template.get(name) for name in _SWITCHES) if isinstance(template, Mapping) else ()),
    ]  # fmt: skip
    wishes = [_wish(one) for one in (*said, {"budget_tokens": params.get("thinking_budget")})]
    efforts = [wish.effort for wish in wishes if wish.effort is not None]
    # a level tells more than a switch, unless the switch is off
    effort = next((one for one in efforts if one not in ("none", "on")), efforts[0] if efforts else None)
    tokens = next((wish.tokens for wish in wishes if wish.tokens), None)
    return Wish("none" if "none" in efforts else effort, tokens)


def _wish(said: object) -> Wish:
    """Of one parameter: a level, a switch, a number of tokens, or a mapping with such."""
    if isinstance(said, bool):
        return Wish("on" if said else "none")
    if isinstance(said, str):
        return Wish(_WORDS.get(said.lower(), said.lower()) or None)
    if not isinstance(said, Mapping):
        return Wish()
    tokens = next((said[name] for name in _BUDGETS if isinstance(said.get(name), int)), None)
    level = next((said[name] for name in _LEVELS if isinstance(said.get(name), str | bool)), None)
    if tokens == 0:
        return Wish("none")
    effort = _wish(level).effort or ("on" if tokens else None)
    return Wish(effort, tokens if tokens and tokens > 0 and effort != "none" else None)


def check_effort(name: str, model: Model, effort: str | None) -> None:
    """Raises UsageError for an effort that the model is known to refuse."""
    if effort is None or not model.is_known or effort in model.efforts:
        return
    takes = f"takes {', '.join(model.efforts)}" if model.efforts else "takes no effort"
    raise UsageError(
        f"--reasoning-effort {effort}: {name} {takes} ({model.source}). If that has changed, "
        f"--param reasoning_effort={effort} sends it anyway"
    )


def accepted(model: Model, effort: str, sampling: Mapping[str, float]) -> dict[str, float]:
    """Those of the sampling parameters that the model takes at this effort, as they are sent."""
    refused = {*model.always_refuses, *(model.refuses if effort != "none" else ())}
    sent = {
        name: value
        for name, value in sampling.items()
        if name not in refused and (model.neutral or value != 1)
    }
    if len(both := [name for name in model.one_of if name in sent]) > 1:
        # of two the one that changes something stays, and of two such the first
        keep = next((name for name in both if sent[name] != 1), both[0])
        sent = {name: value for name, value in sent.items() if name not in both or name == keep}
    return sent
