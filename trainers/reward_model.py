"""A language model's body with one number for a head: transformers' sequence classification, read right.

transformers takes the last token that is not the padding's id, which is a wrong one where that id is also
the end of sequence (SmolLM2). Here the mask says where a row ends. The folder that is saved names a padding
token that ends no row, where the tokenizer has one, so that plain transformers reads the same place.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any, get_args

import torch
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from store.errors import UsageError, why_unread
from trainers.encoding import Template
from trainers.models import whole

ABOUT = "reward.json"
HEAD = "score."
FAMILIES = {"llama", "opt", "mistral", "qwen2", "qwen3", "smollm3", "phi3"}  # with `model` and `score`


@dataclass(frozen=True)
class About:
    """How a reward model was taught to read."""

    template: Template
    max_length: int


def check_family(config: Any) -> None:
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError(f"a reward model of type {config.model_type} is not known; known are {known}")


def skeleton(config: Any) -> Any:
    """Without weights: shapes only, no memory."""
    config.num_labels = 1
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def reward_model(model: str, dtype: torch.dtype, pad: int, new: str = HEAD) -> Any:
    """The weights in `dtype`, with a new head where the folder has none (`new` empty: it must have one)."""
    found = whole(AutoModelForSequenceClassification, model, dtype, new, num_labels=1, pad_token_id=pad)
    return read_by_mask(found)


def read_by_mask(model: Any) -> Any:
    """Bound to the instance, so that wrappers (DeepSpeed, peft) call it and the class stays as saved."""
    model.forward = MethodType(_rewards, model)
    model.score.forward = MethodType(_head, model.score)
    return model


def _rewards(
    self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
) -> SequenceClassifierOutputWithPast:
    """logits: (rows, 1) float32, at the last token that the mask (rows, length) shows."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    last = last_shown(attention_mask)
    return SequenceClassifierOutputWithPast(
        logits=self.score(hidden[torch.arange(len(last), device=last.device), last])
    )


def last_shown(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) the place of each row's last token, wherever the padding is."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


def _head(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The head in float32, under autocast too: bf16 has 256 numbers between 1 and 2, and near rewards
    would be ties."""
    return (hidden.float() * self.weight.float()).sum(-1, keepdim=True)


def padding_of(tokenizer: Any) -> int:
    """A token that ends no row; the end of sequence itself where there is no other."""
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    found: int = next(
        (i for i in ids if i is not None and i != tokenizer.eos_token_id), tokenizer.eos_token_id
    )
    return found


def write_about(about: About, folder: Path) -> None:
    (folder / ABOUT).write_text(json.dumps(asdict(about)) + "\n")


def read_about(folder: Path) -> About:
    """Raises UsageError where the folder is no reward model of ours."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"--reward {folder}: no config.json there; expected a folder of `train reward`")
    try:
        found = json.loads((folder / ABOUT).read_bytes())
        if found["template"] not in get_args(Template) or found["max_length"] < 1:
            raise ValueError(f"template {found['template']}, max_length {found['max_length']}")
        return About(found["template"], int(found["max_length"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = why_unread(error) if isinstance(error, OSError) else error
        raise UsageError(
            f"--reward {folder}: no {ABOUT} that says how it reads ({why}); "
            "expected a folder of `train reward`"
        ) from None
