"""Models by name: a folder, a hub name, or `smollm2`, the embedded one.

Looks at the configuration first, so that size and architecture are known before weights are read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from store.errors import UsageError, first_line
from store.weights import check_weights
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
    except Exception as error:  # whatever a library says of a file that is not as it should be
        other = "" if Path(model).is_dir() else f" A folder, or {SMOLLM2}, needs no network."
        raise UsageError(f"the model {model} cannot be read: {first_line(error)}{other}") from error


def tokenizer_of(model: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:
        raise UsageError(f"{model}: its tokenizer cannot be read: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{model}: its tokenizer has no end-of-sequence, which a student must learn")
    return tokenizer


def check_whole(model: str, skeleton: Any, new: str = "") -> None:
    """Raises UsageError where a folder lacks weights that the skeleton has, but for those whose names begin
    with `new`. Of a hub's model, and of one in fewer bits, nothing is known."""
    if not Path(model).is_dir() or getattr(skeleton.config, "quantization_config", None):
        return
    named = skeleton.named_parameters()
    check_weights(Path(model), {n: tuple(p.shape) for n, p in named if not (new and n.startswith(new))})


def whole(kind: Any, model: str, dtype: torch.dtype, new: str = "", **more: Any) -> Any:
    """A model of this kind with its weights. Raises UsageError where some are missing, for they would be
    drawn at random; those whose names begin with `new` may be."""
    try:
        found, told = kind.from_pretrained(
            model, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **more
        )
    except OSError as error:
        raise UsageError(f"{model}: its weights cannot be read: {first_line(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if not (new and name.startswith(new)))
    if missing:
        raise UsageError(f"{model}: {len(missing)} weights are missing, such as {missing[0]}")
    return found


def skeleton(config: Any) -> Any:
    """The causal model without weights: shapes only, no memory."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:
        words = f"a model of type {config.model_type} does not write text, or not with this config.json"
        raise UsageError(f"{words}: {first_line(error)}") from error


def packs_exactly(config: Any) -> bool:
    return config.model_type in EXACT_WHEN_PACKED


def causal_model(model: str, dtype: torch.dtype) -> Any:
    """The weights, in `dtype`. Under ZeRO-3 they are shared out while they are read."""
    return whole(AutoModelForCausalLM, model, dtype)


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
