"""Whether a folder holds a model that answers, and what it is called. Reads files only; no torch."""

import hashlib
import json
from pathlib import Path

from store.errors import UsageError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = ("*.safetensors", "*.bin")
# All that decides an answer: weights, shape, words, and how a chat is put to it.
DECISIVE = (*WEIGHTS, CONFIG, "generation_config.json", "tokenizer*", "chat_template*", "vocab*", "merges*")
WRITES = ("CausalLM", "LMHeadModel")
EXPECTED = "expected a transformers folder with a model that writes text, as `train sft` makes it"


def check(folder: Path) -> None:
    """Raises UsageError with what it is instead, and what to do."""
    path = folder / CONFIG
    if not path.is_file():
        instead = f"no {CONFIG} there"
        if (folder / ADAPTER).is_file():
            instead = "it holds a LoRA adapter only, without the model under it: merge them and save the "
            instead += "complete model"
        elif any(folder.glob("*.gguf")):
            instead += ", but a GGUF file: give that file's name"
        raise UsageError(f"{folder}: {instead}; {EXPECTED}")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; {EXPECTED}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} is no JSON object; {EXPECTED}")
    names = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    if (folder / "reward.json").is_file() or any("SequenceClassification" in name for name in names):
        raise UsageError(f"{folder} is a reward model: it scores answers (`distill rank`); {EXPECTED}")
    if names and not any(name.endswith(WRITES) for name in names):
        raise UsageError(f"{folder} holds {', '.join(names)}; {EXPECTED}")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise UsageError(f"{folder}: there are no weights beside {CONFIG} (*.safetensors); {EXPECTED}")


def name_of(folder: Path) -> str:
    """The folder's name with a hash of all that decides its answers: retrained, it is another model,
    with other keys in a ledger."""
    digest = hashlib.sha256()
    found = {file for pattern in DECISIVE for file in folder.glob(pattern)}
    for file in sorted(file for file in found if file.is_file() and file.name != "training_args.bin"):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{folder.resolve().name}-{digest.hexdigest()[:8]}"
