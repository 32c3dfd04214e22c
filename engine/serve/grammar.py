"""JSON by a schema: what may come next, by xgrammar (Dong et al., arXiv 2411.15100)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import torch

from engine.serve.http import Refused
from engine.serve.model_loader import Student

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
PARAM = "response_format"
PLACE_IN_XGRAMMAR = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # [hour] file:line:


class Grammars:
    """Compiles schemas for one model's vocabulary; a schema that was seen is at hand."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._compiler: Any = None

    def compiled(self, response_format: Mapping[str, Any] | None) -> Any:
        """The grammar of a reply, or None where it is free. Raises Refused for a schema that is none."""
        kind = (response_format or {}).get("type", "text")
        if response_format is None or kind == "text":
            return None
        schema = response_format["json_schema"]["schema"] if kind == "json_schema" else ANY_OBJECT
        compiler = self._ready()
        try:
            # No white space but one after a sign: small models write it for ever.
            return compiler.compile_json_schema(orjson.dumps(schema).decode(), any_whitespace=False)
        except (RuntimeError, ValueError, TypeError) as error:
            words = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            words = PLACE_IN_XGRAMMAR.sub("", words)
            raise Refused(400, f"the schema cannot be followed: {words}", PARAM, "invalid_value") from error

    def _ready(self) -> Any:
        if self._compiler is None:
            try:
                import xgrammar
            except ImportError as error:
                words = "response_format needs xgrammar: pip install 'distill[schemas]'"
                raise Refused(400, words, PARAM, "unsupported_parameter") from error
            told = xgrammar.TokenizerInfo.from_huggingface(
                self._student.texts.tokenizer,
                vocab_size=self._student.vocabulary,
                stop_token_ids=sorted(self._student.ends),
            )
            self._compiler = xgrammar.GrammarCompiler(told, max_threads=2)
        return self._compiler


def matcher(grammar: Any) -> Any:
    """A row's place in its grammar, from the beginning; None where it has none."""
    if grammar is None:
        return None
    import xgrammar

    return xgrammar.GrammarMatcher(grammar)


def keep_allowed(logits: torch.Tensor, matchers: Sequence[Any]) -> None:
    """Puts -inf where the row's grammar does not go on. matchers: one for each row, None where it is free."""
    held = [place for place, one in enumerate(matchers) if one is not None]
    if not held:
        return
    import xgrammar

    allowed = xgrammar.allocate_token_bitmask(len(matchers), logits.shape[-1])
    for place in held:
        matchers[place].fill_next_token_bitmask(allowed, place)
    xgrammar.apply_token_bitmask_inplace(logits, allowed.to(logits.device), indices=held)
