"""What the trainers and the server of a student must agree about: the marks around its thinking, texts as its
tokens, and whether its folder holds all weights.

A tokenizer is known by the few methods that are called; no library is imported. It takes `</s>` in an answer
for the end of sequence, and `<|im_end|>` in a question for the end of its turn. What people and models wrote
must not end or open anything. So each such place in a text gets a mark, which the tokenizer keeps apart and
which is taken out of its tokens again: the place reads as plain text. The control tokens that a chat template
writes around the texts stay.
"""

import copy
import json
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from store.errors import UsageError

# How published models mark their thinking; the first is by far the most common.
PAIRS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)  # fmt: skip
# How some of them mark what comes after it.
_ANSWER_MARKS = (("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|begin_of_solution|>", "<|end_of_solution|>"))
# Where a row or a message holds it; the first is what chat templates and most servers use.
FIELDS = ("reasoning_content", "reasoning", "thinking")
_QUESTION, _THOUGHT, _ANSWER = "question-5d1c", "thought-8e07", "answer-b3f2"


@dataclass(frozen=True)
class Marks:
    """What stands before and after the thinking, with its line breaks.

    opened: the prompt ends with `before` already, so a student begins inside its thinking. field: the
    message's field that the chat template writes between the marks; empty where it writes none. end: what
    the template writes after an answer.
    """

    before: str
    after: str
    opened: bool = False
    field: str = ""
    end: str = ""


def reasoning_in(row: Mapping[str, Any]) -> str:
    """The thinking that a row or a message holds in a field of its own, without marks around it; empty where
    there is none."""
    found = (row.get(name) for name in FIELDS)
    text = next((text.strip() for text in found if isinstance(text, str) and text.strip()), "")
    thought, answer = apart(text)
    return text if answer else thought


def apart(text: str) -> tuple[str, str]:
    """(thinking, answer) of a text that begins with marked thinking, else ("", text). Thinking that was
    never closed has no answer."""
    begins = text.lstrip()
    for opening, closing in PAIRS:
        if begins[: len(opening)].lower() == opening.lower():
            rest = begins[len(opening) :]
            end = re.search(re.escape(closing), rest, re.IGNORECASE)
            if end is None:
                return rest.strip(), ""
            return rest[: end.start()].strip(), rest[end.end() :].lstrip()
    return "", text


def unwrapped(answer: str) -> str:
    """An answer without the marks that some models write around what follows their thinking."""
    begins = answer.strip()
    for opening, closing in _ANSWER_MARKS:
        if begins.startswith(opening):
            return begins.removeprefix(opening).removesuffix(closing).strip()
    return answer


def usual_marks(tokenizer: Any) -> Marks:
    """The pair that the tokenizer knows as tokens, else the most common one."""
    known = tokenizer.get_added_vocab()
    opening, closing = next((pair for pair in PAIRS if known.keys() >= set(pair)), PAIRS[0])
    return Marks(f"{opening}\n", f"\n{closing}\n\n")


def marks_of(tokenizer: Any) -> Marks:
    """What the tokenizer's chat template makes of thinking, found by showing it some."""
    if not tokenizer.chat_template:
        return usual_marks(tokenizer)
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    asked = _rendered(tokenizer, [question], add_generation_prompt=True)
    plain = _rendered(tokenizer, [question, answer])
    if asked is None or plain is None:
        return usual_marks(tokenizer)
    end = plain.rpartition(_ANSWER)[2] if _ANSWER in plain else ""
    for field in FIELDS:
        shown = _rendered(tokenizer, [question, {**answer, field: _THOUGHT}]) or ""
        head, _, tail = shown.partition(_THOUGHT)
        if _ANSWER in tail:
            after = tail[: tail.index(_ANSWER)]
            if head.startswith(asked) and head != asked:
                return Marks(head.removeprefix(asked), after, False, field, end)
            before = _opened_by(asked)
            return Marks(before, after, head == asked or bool(before), field, end)
    # a template that writes no thinking, though it may open it for the answer that comes
    template = str(tokenizer.chat_template)
    for opening, closing in PAIRS:
        if asked.rstrip().endswith(opening):
            return Marks(_opened_by(asked), f"\n{closing}\n\n", opened=True, end=end)
        if opening in template and closing in template:
            return Marks(f"{opening}\n", f"\n{closing}\n\n", end=end)
    return replace(usual_marks(tokenizer), end=end)


def _opened_by(asked: str) -> str:
    """The opening mark at the end of a prompt, with what follows it; empty where there is none."""
    at = max((asked.rfind(opening) for opening, _ in PAIRS if asked.rstrip().endswith(opening)), default=-1)
    return asked[at:] if at >= 0 else ""


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> str | None:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # whatever a template of others raises at such a chat
        return None


# Added tokens that are not declared special but look like it (Qwen's <tool_call>). HTML tags, which some
# vocabularies hold as tokens, are plain text.
_LOOKS_SPECIAL = re.compile(r"<[|｜].+[|｜]>|\[/?[A-Z_]+\]|</?tool_(?:call|response)>", re.DOTALL)
NAMED = 3


class TextTokens:
    """A tokenizer for texts. seen: the control tokens that stood in texts so far, and how often."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: Counter[str] = Counter()
        self._mark = f"<mark-{os.urandom(8).hex()}>"
        self._controls = _pattern(tokenizer)

    def __repr__(self) -> str:
        return f"TextTokens({type(self.tokenizer).__name__}, {self.seen.total()} control tokens in texts)"

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def marks(self) -> Marks:
        """Around the thinking, in the tokenizer's chat template."""
        return marks_of(self.tokenizer)

    @cached_property
    def usual_marks(self) -> Marks:
        """The same without a chat template."""
        return usual_marks(self.tokenizer)

    @cached_property
    def unseen(self) -> frozenset[int]:
        """The special tokens that are no part of an answer's text: all but those that mark thinking."""
        around = self.marks.before + self.marks.after
        known = self.tokenizer.added_tokens_decoder.items()
        special = {n for n, token in known if token.special and token.content not in around}
        own = zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True)
        return frozenset(special | {n for n, content in own if content not in around})

    def plain(self, text: str) -> str:
        """The text, marked where it holds control tokens, so that `ids` reads them as text."""
        if self._controls is None:
            return text
        found = [match[1] for match in self._controls.finditer(text)]
        self.seen.update(found)
        # After the first sign of each, so that none of them is left whole, also where they overlap.
        return self._controls.sub(lambda match: match[2] + self._mark, text) if found else text

    def ids(self, text: str, **options: Any) -> list[int]:
        """The tokens of a text whose parts went through `plain`."""
        if self._mark not in text:
            found: list[int] = self.tokenizer(text, **options)["input_ids"]
            return found
        mark = self._marking.convert_tokens_to_ids(self._mark)
        return [token for token in self._marking(text, **options)["input_ids"] if token != mark]

    def chat_text(self, messages: Sequence[Mapping[str, str]], **options: bool) -> str:
        """What the chat template makes of messages whose contents went through `plain`."""
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text

    def chat_ids(self, messages: Sequence[Mapping[str, str]], **options: bool) -> list[int]:
        return self.ids(self.chat_text(messages, **options), add_special_tokens=False)

    @cached_property
    def _marking(self) -> Any:
        """The same tokenizer, with the mark as one more token."""
        found = copy.deepcopy(self.tokenizer)
        found.add_tokens([self._mark], special_tokens=True)
        return found


def named(seen: Counter[str]) -> str:
    """The commonest of the control tokens that were seen, for a sentence."""
    return ", ".join(control for control, _ in seen.most_common(NAMED))


def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Where a control token begins (1: the token, 2: its first sign); None of a tokenizer without any."""
    marks = {mark for pair in PAIRS for mark in pair}
    controls = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content in marks or _LOOKS_SPECIAL.fullmatch(token.content):
            controls.add(token.content)
    controls = {control for control in controls if len(control) > 1}
    if not controls:
        return None
    begins = "".join(sorted({control[0] for control in controls}))
    longest_first = sorted(controls, key=lambda control: (-len(control), control))
    anyone = "|".join(map(re.escape, longest_first))
    # The first sign is looked at alone before all tokens are tried: some vocabularies have a thousand.
    return re.compile(f"(?=[{re.escape(begins)}])(?=({anyone}))(.)", re.DOTALL)


EXPECTED = "expected a transformers folder with a model that writes text, as `train sft` makes it"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_HEADER = 100 << 20  # bytes, which the format allows
# https://huggingface.co/docs/safetensors/index#format
Shape = tuple[int, ...]


def check_weights(folder: Path, wanted: Mapping[str, Shape]) -> None:
    """Raises UsageError where files are missing or torn, or are of another model than the one that has
    parameters of these names and shapes: transformers would draw what is missing at random."""
    files = _files(folder)
    if not files:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        torn = next((file for file in pickled if not _may_be_pickled(file)), None)
        if torn is not None:
            raise UsageError(f"{torn} is incomplete or does not hold weights; save the model as safetensors")
        held = sum(file.stat().st_size for file in folder.glob("*.bin"))  # a parameter has a byte at least
        if not held:
            raise UsageError(f"{folder}: there are no weights beside config.json ({WHOLE})")
        found: dict[str, Shape] = {}
    else:
        found = {name: shape for file in files for name, shape in _shapes(file).items()}
        held = sum(map(math.prod, found.values()))
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            raise UsageError(
                f"{folder}: config.json describes another model than the weights: {name} is {wanted[name]} "
                f"by it, and {found[name]} in them"
            )
    described = sum(map(math.prod, wanted.values()))
    if described > held:
        missing = sorted(wanted.keys() - found.keys())
        raise UsageError(
            f"{folder}: {len(missing):,} weights are missing, such as {missing[0]}: config.json describes "
            f"{described:,} parameters, and there are {held:,} at most; it is damaged or not a complete model"
        )


def _may_be_pickled(file: Path) -> bool:
    """PyTorch writes a zip archive, or (before 1.6) a pickle. What is in it is read by torch alone."""
    with file.open("rb") as content:
        return zipfile.is_zipfile(content) or (content.seek(0) == 0 and content.read(1) == b"\x80")


def _files(folder: Path) -> list[Path]:
    """Those that transformers reads, all there."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        named = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read: {error}") from error
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder}: {missing[0]} is missing, which {INDEX} names")
    return [folder / name for name in named]


def _shapes(file: Path) -> dict[str, Shape]:
    """Of every tensor of a safetensors file, which is as long as its header says."""
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(length, MOST_HEADER)))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is incomplete or not a safetensors file: its header cannot be read"
        ) from error
    if file.stat().st_size != 8 + length + end:
        raise UsageError(f"{file} is incomplete: {file.stat().st_size:,} bytes of {8 + length + end:,}")
    return shapes
