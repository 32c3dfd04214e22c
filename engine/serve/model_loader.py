"""Loads a transformers folder: weights in the fastest dtype, tokenizer, limits, chat template.

Nothing is downloaded, and no code from the folder is run. A student trained by `train sft` has its own chat
template. Folders without one, such as base models, get Alpaca's.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, logging
from transformers.cache_utils import DynamicLayer

from engine.serve.http import Refused
from store.errors import UsageError, first_line
from store.records import ALPACA_WITHOUT_INPUT, Message, alpaca_prompt
from store.student import EXPECTED, TextTokens, check_weights

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
UNKNOWN_CONTEXT = 4096
MOST_CONTEXT = 10**6  # a tokenizer that knows no limit says 10**30
CPU_HAS_BF16 = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Student:
    """ends: tokens that end an answer. unseen: tokens that are no part of its text. vocabulary: tokens that
    may be written; the model may have more places. context: tokens of prompt and answer together."""

    name: str
    model: Any
    texts: TextTokens
    device: torch.device
    dtype: torch.dtype
    context: int
    ends: frozenset[int]
    unseen: frozenset[int]
    vocabulary: int

    def decode(self, tokens: Sequence[int]) -> str:
        """Without special tokens, but for those that mark thinking."""
        shown = [token for token in tokens if token not in self.unseen]
        return str(self.texts.tokenizer.decode(shown, clean_up_tokenization_spaces=False))

    @property
    def precision(self) -> str:
        """bf16, fp32 or fp16."""
        return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(self.dtype, "fp16")

    @property
    def fingerprint(self) -> str:
        """What an answer depends on besides its request, as replies tell it: two replies with the same
        seed are comparable only where these are equal."""
        return f"{self.name}-{self.precision}-{self.device.type}"

    @property
    def repeats(self) -> bool:
        """Whether a seed gives the same answer whatever else is in the batch. A row's logits depend on the
        batch around it in their last digits: in fp32 these hardly ever decide a token, in bf16 they do. GPUs
        choose other kernels for other sizes, so nothing is promised there."""
        return self.dtype is torch.float32 and self.device.type == "cpu"

    def __repr__(self) -> str:
        return f"{self.name}: {self.precision} on {self.device}, {self.context:,} tokens of context"


def load(folder: Path, name: str, precision: str | None = None) -> Student:
    """precision: bf16 or fp32, the faster one unless given. Raises UsageError where the folder cannot be
    used."""
    logs: Any = logging  # what matters is in the errors
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    whole = _read(folder, AutoConfig)
    config, tokenizer = whole.get_text_config(), _read(folder, AutoTokenizer)
    _check_whole(folder, whole)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = PRECISIONS[precision] if precision else fastest(device, config.dtype)
    model = _weights(folder, dtype).eval().to(device)
    # rows join and leave a batch by its keys and values: there must be some for every layer
    cache, inputs = DynamicCache(), {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=model.device)}
    with torch.inference_mode():
        model(**inputs, past_key_values=cache, use_cache=True)
    layers = model.config.get_text_config().num_hidden_layers
    if len(cache.layers) != layers or not all(
        type(layer) is DynamicLayer and layer.get_seq_length() == 1 for layer in cache.layers
    ):
        kind = model.config.model_type
        raise UsageError(f"{folder}: models of type {kind} cannot be served here; another server (vLLM) may")
    tokenizer("")  # forgets truncation and padding here, before there are threads
    texts = TextTokens(tokenizer)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    known = (limit for limit in limits if isinstance(limit, int) and 0 < limit < MOST_CONTEXT)
    context = next(known, UNKNOWN_CONTEXT)
    said = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None}
    if not ends:
        raise UsageError(f"{folder}: its tokenizer has no end-of-sequence, so no answer would end")
    vocabulary = min(config.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    return Student(
        name, model, texts, device, dtype, context, frozenset(ends), texts.unseen, vocabulary
    )  # fmt: skip


def _read(folder: Path, kind: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever a library says of a file that is not as it should be
        what = "tokenizer" if kind is AutoTokenizer else "config.json"
        raise UsageError(f"{folder}: its {what} cannot be read: {first_line(error)}; {EXPECTED}") from error


def _check_whole(folder: Path, config: Any) -> None:
    """Before memory is taken: a config.json that lacks fields describes another model, often a large one."""
    if getattr(config, "quantization_config", None):  # the files have other shapes than the model
        return
    kind: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            shapes = {name: tuple(p.shape) for name, p in kind.from_config(config).named_parameters()}
    except Exception as error:
        words = f"{folder}: no model can be made from its config.json: {first_line(error)}"
        raise UsageError(f"{words}; {EXPECTED}") from error
    check_weights(folder, shapes)


def _weights(folder: Path, dtype: torch.dtype) -> Any:
    kind: Any = AutoModelForCausalLM
    try:
        model, told = kind.from_pretrained(
            str(folder), dtype=dtype, attn_implementation="sdpa", local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # torn files, shapes that do not fit, types that write no text
        raise UsageError(f"{folder}: its weights cannot be read: {first_line(error)}; {EXPECTED}") from error
    missing = sorted(told["missing_keys"])
    if missing:  # they would be drawn at random
        raise UsageError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}: it is damaged or "
            f"incomplete; {EXPECTED}"
        )
    return model


def fastest(
    device: torch.device, saved: torch.dtype | None = None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> torch.dtype:
    """By what the machine is: a measurement on a busy one says another thing each time. Where a processor
    has no instructions for bf16, it is ten times slower than fp32 and more. On a CPU a model that was saved
    in fp32 stays so: `train` does that where fp32 was measured to be faster."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if saved is torch.float32:
        return saved
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return torch.bfloat16 if CPU_HAS_BF16 & set(flags) else torch.float32


def takes(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


END_OF_PROMPT = ALPACA_WITHOUT_INPUT[ALPACA_WITHOUT_INPUT.index("### Response:") :]


def prompt_tokens(messages: Sequence[Message], texts: TextTokens) -> list[int]:
    """Control tokens in messages are read as text. Raises Refused where the template does not take them."""
    told: list[Message] = [{"role": m["role"], "content": texts.plain(m["content"])} for m in messages]
    if not texts.tokenizer.chat_template:
        tokens = texts.ids(alpaca(told, texts.tokenizer.eos_token or ""))
        return tokens[:-1] if len(tokens) > 1 and tokens[-1] == texts.end else tokens
    from jinja2 import TemplateError

    known = [{**m, "role": "system" if m["role"] == "developer" else m["role"]} for m in told]
    try:
        found = texts.chat_ids(known, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        words = f"the model's chat template does not take these messages: {error}"
        raise Refused(400, words, "messages", "invalid_value") from error
    return found


def alpaca(messages: Sequence[Message], end: str) -> str:
    """Each question in Alpaca's form, unless it is in it already; each answer with its end of sequence."""
    turns = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            turns.append(content + end)
        elif role != "user":
            turns.append(f"{content}\n\n")
        elif content.endswith(END_OF_PROMPT):
            turns.append(content)
        else:
            turns.append(alpaca_prompt(content))
    return "".join(turns)
