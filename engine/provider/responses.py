"""Reads a reply of 200: the answer, the thinking beside it, how it ended, what it says it cost.

Pure functions, no I/O. Servers that speak 'the OpenAI API' differ in all of these; every dialect is
read here and nowhere else. What is no answer is named (empty, other, tool_calls), an error inside a
reply of 200 is raised as if its code were the status, and what cannot be read at all is a BadReply.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.provider.errors import AskError, BadReply, RunStopped
from engine.provider.json_body import is_page, is_prose, parse_body
from engine.provider.refusal_words import any_of
from engine.provider.refusals import embedded_error, ended
from engine.provider.usage import NO_CLAIM, Claim, read_claim
from store.records import UNUSABLE, Outcome
from store.student import PAIRS, apart, unwrapped

UNREAD_LENGTH = 200

# How a reply ended, in anybody's spelling: lower case, '-' and blanks as '_'.
WHOLE = {
    "", "stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token", "end_of_sequence", "complete",
    "completed",
}  # fmt: skip
CUT = any_of(
    "length", "truncat", "max(?:imum)?_?(?:new_|output_|completion_|predicted_?)?(?:token|output$)",
    "token_?limit", "context_window", "^(?:error_)?limit$", "^incomplete$",
)  # fmt: skip
FILTERED = any_of(
    "content_?filter", "safety", "prohibited", "sensitive", "^block", "^spii$", "recitation", "guardrail",
    "censor", "moderat", "content_?policy", "policy_violation", "toxic", "^risk$", "unsafe", "model_armor",
    "^language$",
)  # fmt: skip
REFUSED = {"refusal", "refused"}
TOOLS = {
    "tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call",
    "unexpected_tool_call", "malformed_tool_call",
}  # fmt: skip
_REASONING = (
    "reasoning_content", "reasoning", "thinking", "reasoning_text", "thoughts", "reasoning_details",
    "thinking_blocks",
)  # fmt: skip
_REASONING_NAMES = frozenset(_REASONING)
_THOUGHT_PART = re.compile("think|thought|reason|^summary_text$")
_CALL_PARTS = ("tool_use", "tool_call", "function_call", "server_tool_use")
_BARE_CLOSING = re.compile(r"(?:^|\n)\s*(</think>|</thinking>|\[/THINK\]|◁/think▷|</seed:think>)\s*(?:\n|$)")
_INLINE_CLOSING = re.compile(r"(?<=[.!?。！？])\s*</think>\s*(?=\w)|</think>\s*\n")
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*")
_BARE_HARMONY = re.compile(r"analysis(.+?)assistantfinal(.*)", re.DOTALL)  # its marks were left out
_HARMONY = re.compile(
    r"<\|channel\|>(\w+)(?:<\|constrain\|>\w+)?<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)


class Reply(NamedTuple):
    """A reply that could be read. `plain`: the stored body shows text and thinking to a JSON path."""

    outcome: Outcome
    text: str
    finish_reason: str
    model: str = ""
    reasoning: str = ""
    claim: Claim = NO_CLAIM
    tier: str | None = None
    plain: bool = True

    @property
    def is_unusable(self) -> bool:
        return self.outcome in UNUSABLE


FILTERED_REPLY = Reply("content_filter", "", "content_filter", plain=False)  # refused, and free


def read_reply(raw: bytes) -> Reply:
    """A chat completion's first choice. Raises BadReply where there is nothing to read, or the error that
    the body holds (an AskError or RunStopped, with `raw` and `claim`)."""
    try:
        body, plain = parse_body(raw)
        error = embedded_error(body)
    except (ValueError, RecursionError) as wrong:
        raise BadReply(
            _why_unreadable(raw, "it is not JSON"), raw, page=is_page(raw) or is_prose(raw)
        ) from wrong
    if error is not None:
        raise with_body(error, raw, read_claim(body.get("usage") if isinstance(body, dict) else None))
    try:
        if not body.get("choices"):  # Google's say so where the prompt was blocked
            feedback = body.get("promptFeedback") or body.get("prompt_feedback") or {}
            if feedback.get("blockReason") or feedback.get("block_reason"):
                return FILTERED_REPLY._replace(
                    claim=read_claim(body.get("usage") or body.get("usageMetadata"))
                )
        choice = body["choices"][0]
        message = choice.get("message")
        if message is None:  # filtered replies may have none
            said = choice.get("text")
            message = choice.get("delta") or ({"content": said} if said or choice["finish_reason"] else None)
        return _reply(body, choice, message, plain)
    except (LookupError, TypeError, AttributeError, RecursionError) as wrong:
        raise BadReply(_why_unreadable(raw, "there is no choice in it"), raw) from wrong


def _reply(
    body: Mapping[str, Any], choice: Mapping[str, Any], message: Mapping[str, Any], plain: bool
) -> Reply:
    given, told = message.get("content"), ""
    content, thought = (given, "") if isinstance(given, str) else _content(given)
    beside = message.get("provider_specific_fields")  # LiteLLM
    for place in (message, choice, beside if isinstance(beside, dict) else {}):
        if _REASONING_NAMES.isdisjoint(place):
            continue
        if told := next((text for name in _REASONING if (text := _joined_text(place.get(name)))), ""):
            break
    text, marked = split_thinking(content)
    refusal = message.get("refusal") or (_refusal_in(given) if isinstance(given, list) else "")
    finish = choice.get("finish_reason") or choice.get("stop_reason") or ""
    calls = message.get("tool_calls") or message.get("function_call")
    if isinstance(given, list) and not calls:
        calls = any(isinstance(part, dict) and part.get("type") in _CALL_PARTS for part in given)
    outcome = _outcome(str(finish), text, refusal, bool(calls))
    if outcome == "refusal" and not text.strip() and isinstance(refusal, str):
        text = refusal
    reasoning = "\n".join(filter(None, (told, thought, marked)))
    shown = (given == text and "\0" not in text) or (not text and given is None)
    model, tier = body.get("model"), body.get("service_tier")
    return Reply(
        outcome,
        text,
        str(finish),
        model if isinstance(model, str) else "",
        reasoning,
        read_claim(body.get("usage") or body.get("usageMetadata")),
        tier if isinstance(tier, str) else None,
        plain and shown and reasoning in ("", message.get("reasoning_content"), message.get("reasoning")),
    )


def _outcome(finish: str, text: str, refusal: object, calls: bool) -> Outcome:
    """What a reply amounts to: the server's word on a filter first, then whether there is an answer."""
    end = ended(finish)
    if end not in WHOLE and FILTERED.search(end):
        return "content_filter"
    if end in REFUSED or (isinstance(refusal, str) and refusal):
        return "refusal"
    if calls or (end in TOOLS and not text.strip()):
        return "tool_calls"
    if not text[:1].isalnum() and _INVISIBLE.fullmatch(text):
        return "empty"
    if end in WHOLE:
        return "stop"
    return "length" if CUT.search(end) else "other"


def _content(content: object) -> tuple[str, str]:
    """(text, thinking) of a message's content: a text, or parts of either kind."""
    if isinstance(content, int | float) and not isinstance(content, bool):
        return str(content), ""
    if isinstance(content, dict):
        content = content.get("parts") if isinstance(content.get("parts"), list) else [content]
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = str(part.get("type", ""))
            is_thought = bool(_THOUGHT_PART.search(kind)) or part.get("thought") is True
            (thoughts if is_thought else texts).append(_joined_text(part))
    return "".join(texts), "\n".join(text for text in thoughts if text)


def _refusal_in(content: list[object]) -> str:
    """What a part of the kind 'refusal' says."""
    refusals = [part.get("refusal") for part in content if isinstance(part, dict)]
    return "".join(text for text in refusals if isinstance(text, str))


def _joined_text(value: object) -> str:
    """All text in a value that may be a text, a part, or a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        names = (
            "text",
            "thinking",
            "reasoning",
            "reasoning_content",
            "summary",
            "content",
            "output_text",
            "value",
        )
        return next((text for name in names if (text := _joined_text(value.get(name)))), "")
    if isinstance(value, list):
        return "".join(_joined_text(part) for part in value)
    return ""


def split_thinking(text: str) -> tuple[str, str]:
    """(answer, thinking) of a text with thinking marks at its start; the closing mark alone will do, where
    the prompt had opened it. A text that only speaks of such marks is left alone."""
    if text.startswith("analysis") and (bare := _BARE_HARMONY.fullmatch(text)):
        return bare[2].lstrip(), bare[1].strip()
    if "<" not in text and "[" not in text and "◁" not in text:
        return text, ""
    if "<|channel|>" in text and (found := _HARMONY.findall(text)):
        final = "".join(part for channel, part in found if channel == "final")
        return final, "\n".join(part for channel, part in found if channel != "final").strip()
    thought, answer = apart(text)
    while (again := apart(answer))[1] != answer:  # some think several times
        thought, answer = f"{thought}\n{again[0]}".strip(), again[1]
    answer = unwrapped(answer)
    if answer != text:
        return answer, thought
    if found_mark := _BARE_CLOSING.search(text) or _INLINE_CLOSING.search(text):
        before = text[: found_mark.start()]
        if not any(opening in before for opening, _ in PAIRS) and before.count("```") % 2 == 0:
            return text[found_mark.end() :].lstrip(), before.strip()
    return text, ""


def with_body(error: AskError | RunStopped, raw: bytes, claim: Claim) -> AskError | RunStopped:
    """An error that came inside a reply of 200: what came with it is kept, and may have cost something."""
    error.raw, error.claim = raw, claim
    return error


def claim_in(raw: bytes) -> Claim:
    """What a body says it cost whose answer could not be read, if that much can be read."""
    try:
        body, _ = parse_body(raw)
        return read_claim(body.get("usage"))
    except (ValueError, AttributeError, RecursionError):
        return NO_CLAIM


def _why_unreadable(raw: bytes, why: str) -> str:
    if not raw.strip():
        return "the reply is empty"
    if is_page(raw):
        return "the reply is a page for browsers (HTML), not an answer of an API"
    if is_prose(raw) and "JSON" in why:
        return (
            f"the reply is not JSON but this text: {raw[:UNREAD_LENGTH].decode(errors='replace').strip()!r}"
        )
    return f"the reply cannot be read: {why}"


def answer_of(raw: bytes) -> tuple[str, str]:
    """(text, thinking) in a stored body; a filtered request (a 400) has neither."""
    body, _ = parse_body(raw)
    if not (isinstance(body, dict) and body.get("choices")):
        return "", ""
    reply = read_reply(raw)
    return reply.text, reply.reasoning


def stored_answer(raw: bytes) -> tuple[str, str] | None:
    """The same; None of a body that cannot be read or holds an error (older versions stored such ones as
    answers)."""
    try:
        return answer_of(raw)
    except (AskError, RunStopped, ValueError, RecursionError):
        return None


def logprobs_in(raw: bytes) -> list[Any] | None:
    """What a stored body tells of each token of its first answer (OpenAI's `logprobs.content`); None where
    it tells nothing."""
    body, _ = parse_body(raw)
    try:
        found = body["choices"][0]["logprobs"]["content"]
    except (LookupError, TypeError):
        return None
    return found if isinstance(found, list) and found else None


def text_of(raw: bytes) -> str:
    """The teacher's words in a stored body; none in one that cannot be read."""
    return (stored_answer(raw) or ("", ""))[0]


def is_cut(reply: Reply) -> bool:
    """Whether a reply ended at its bound."""
    return bool(CUT.search(ended(reply.finish_reason)))
