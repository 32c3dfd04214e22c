"""Models by name: a folder, a hub name, or `smollm2`, the embedded one.

Looks at the configuration first, so that size and architecture are known before weights are read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from store.errors import UsageError
from trainers.smollm2 import SMOLLM2, smollm2_folder

# Architectures in which positions that begin anew separate packed rows exactly under sdpa. OPT makes its
# positions from the attention mask and packs silently wrong.
EXACT_WHEN_PACKED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3"}
SAMPLED_BYTES = 1 << 20
SHOWN_BY_NAME = 4


def resolve(name: str, cache: Path) -> str:
    """A folder or hub name that transformers can read. `cache`: where `smollm2` may be unpacked."""
    if name == SMOLLM2:
        return str(smollm2_folder(cache))
    path = Path(name)
    if path.is_file():
        raise UsageError(f"--model {name} is a file; expected a transformers folder, a hub name or {SMOLLM2}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"--model {name}: the folder has no config.json; expected a transformers folder")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise UsageError(f"--model {name}: there is no such folder")
    return name


def config_of(model: str) -> Any:
    """The model's configuration. Raises UsageError where it cannot be had."""
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).strip().splitlines()[0]
        other = "" if Path(model).is_dir() else f" A folder, or {SMOLLM2}, needs no network."
        raise UsageError(f"--model {model} cannot be read: {why}{other}") from error


def tokenizer_of(model: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = str(error).strip().splitlines()[0]
        raise UsageError(f"--model {model}: its tokenizer cannot be read: {why}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--model {model}: its tokenizer has no end-of-sequence, which a student must learn")
    return tokenizer


def skeleton(config: Any) -> Any:
    """The causal model without weights: shapes only, no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UsageError(f"a model of type {config.model_type} does not write text: {error}") from error


def parameters_of(config: Any) -> int:
    return sum(p.numel() for p in skeleton(config).parameters())


def packs_exactly(config: Any) -> bool:
    return config.model_type in EXACT_WHEN_PACKED


def causal_model(model: str, dtype: torch.dtype) -> Any:
    """The weights, in `dtype`. Under ZeRO-3 they are shared out while they are read."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")


def fingerprint(model: str) -> str:
    """Of a folder, wherever it lies: its configuration, and size, beginning and end of each file of weights,
    for the whole of a large model takes minutes. Of a hub name: that, and its configuration."""
    told = config_of(model).to_dict() | {"_name_or_path": "" if Path(model).is_dir() else model}
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for file in sorted(Path(model).glob("*.safetensors")) + sorted(Path(model).glob("*.bin")):
        size = file.stat().st_size
        with file.open("rb") as weights:
            found.update(f"{file.name} {size}".encode() + weights.read(SAMPLED_BYTES))
            weights.seek(max(0, size - SAMPLED_BYTES))
            found.update(weights.read())
    return found.hexdigest()
