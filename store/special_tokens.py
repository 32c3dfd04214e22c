"""Texts as a model's tokens, where no text can pass for a control token.

A tokenizer takes `</s>` in an answer for the end of sequence, and `<|im_end|>` in a question for the end of
its turn. What people and models wrote must not end or open anything. So each such place in a text gets a
mark, which the tokenizer keeps apart and which is taken out of its tokens again: the place reads as plain
text. The control tokens that a chat template writes around the texts stay. Imports no tokenizer.
"""

import copy
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from store.reasoning import PAIRS, Marks, marks_of, usual_marks

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
