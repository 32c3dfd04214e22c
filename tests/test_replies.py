"""What a server says is read for its structure, and nothing that it says makes the reader crash."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.provider.errors import AskError, BadReply, RunStopped, ServerFault
from engine.provider.refusals import read_error
from engine.provider.responses import Reply, answer_of, read_reply, split_thinking
from engine.provider.usage import Claim


def chat(content: object = "Hello", finish: object = "stop", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    return orjson.dumps({"model": "gpt-4-0613", "choices": [choice], "usage": usage, **more})


def error_body(message: object = "No.", code: object = None, kind: object = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "code": code, "type": kind}})


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.sampled_from(["nan", "inf", "-inf", "-1", "1e999", "0", "1_0", "٣", "99999999999999999999"])


def test_a_reply_is_read() -> None:
    assert read_reply(chat()) == Reply("stop", "Hello", "stop", "gpt-4-0613", claim=Claim(9, 2))


def test_only_the_first_choice_counts() -> None:
    body = orjson.loads(chat("first"))
    body["choices"].append(orjson.loads(chat("second"))["choices"][0])
    assert read_reply(orjson.dumps(body)).text == "first"


@pytest.mark.parametrize("text", [" x ", "\n\nanswer\n", "a\0b", "مرحبا", "👩‍👩‍👧‍👦", "x" * 1_000_000])
def test_the_text_is_kept_as_it_came(text: str) -> None:
    assert read_reply(chat(text)).text == text


def test_lone_surrogates_in_a_text_are_no_bad_reply() -> None:
    raw = chat("PLACE").replace(b"PLACE", rb"a\ud83d")
    assert read_reply(raw).text == "a\ufffd"


@pytest.mark.parametrize(
    ("content", "finish", "refusal", "outcome", "text"),
    [
        ("Hi", "stop", None, "stop", "Hi"),
        ("Hi", None, None, "stop", "Hi"),
        ("Hi", "eos", None, "stop", "Hi"),
        ("Hi", "length", None, "length", "Hi"),
        ("", "length", None, "empty", ""),  # a reasoning model that spent all on thinking
        (None, "length", None, "empty", ""),
        (None, "stop", None, "empty", ""),
        (" \n ", "stop", None, "empty", " \n "),
        ("Hi", "model_length", None, "length", "Hi"),
        ("Hi", "MAX_TOKENS", None, "length", "Hi"),
        ("Hi", "max_output_tokens", None, "length", "Hi"),
        ("Hi", "STOP", None, "stop", "Hi"),
        ("Hi", "end_turn", None, "stop", "Hi"),
        ("Hi", "stop_sequence", None, "stop", "Hi"),
        ("Hi", "SAFETY", None, "content_filter", "Hi"),
        (None, "PROHIBITED_CONTENT", None, "content_filter", ""),
        ("", "sensitive", None, "content_filter", ""),
        ("Hi", "content-filtered", None, "content_filter", "Hi"),
        ("No.", "refusal", None, "refusal", "No."),
        ("Hi", "pause_turn", None, "other", "Hi"),
        ("Hi", "OTHER", None, "other", "Hi"),
        (None, "tool_calls", None, "tool_calls", ""),
        (None, "tool_use", None, "tool_calls", ""),
        ("Hi", "content_filter", None, "content_filter", "Hi"),
        (None, "content_filter", None, "content_filter", ""),
        (None, "stop", "I can't help with that.", "refusal", "I can't help with that."),
        (None, "length", "I can't", "refusal", "I can't"),
        ("Hi", "stop", "", "stop", "Hi"),
    ],
)
def test_outcomes(content: object, finish: object, refusal: object, outcome: str, text: str) -> None:
    reply = read_reply(chat(content, finish, message={"refusal": refusal}))
    assert (reply.outcome, reply.text) == (outcome, text)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"<html>Bad gateway</html>", "HTML"),
        (chat()[:-5], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "there is no choice"),
        (b"[]", "there is no choice"),
        (b"null", "there is no choice"),
        (b'"text"', "there is no choice"),
        (b'{"choices":[]}', "there is no choice"),
        (b'{"choices":{}}', "there is no choice"),
        (b'{"choices":null}', "there is no choice"),
        (b'{"choices":[{}]}', "there is no choice"),
        (b'{"choices":[{"message":null}]}', "there is no choice"),
        (b'{"choices":["Hello"]}', "there is no choice"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_a_reply_is_a_bad_reply_that_keeps_the_raw(raw: bytes, words: str) -> None:
    with pytest.raises(BadReply, match=words) as caught:
        read_reply(raw)
    assert caught.value.raw == raw
    assert caught.value.cause == "malformed"
    assert caught.value.maybe_billed == (not raw.startswith(b"<html"))


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "Hi", "reasoning_content": "Let me see."}, "Hi", "Let me see."),
        ({"content": "Hi", "reasoning": "Let me see."}, "Hi", "Let me see."),
        ({"content": "Hi", "reasoning": "Let me", "reasoning_content": "Let me"}, "Hi", "Let me"),
        (
            {"content": "Hi", "reasoning_details": [{"type": "reasoning.text", "text": "Let me"}]},
            "Hi",
            "Let me",
        ),
        ({"content": "<think>\nLet me see.\n</think>\n\nHi"}, "Hi", "Let me see."),
        ({"content": "Let me see.\n</think>\n\nHi"}, "Hi", "Let me see."),
        ({"content": "[THINK]Let me[/THINK]Hi"}, "Hi", "Let me"),
        ({"content": "<think>Cut while thinki"}, "", "Cut while thinki"),
        ({"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, "Hi", ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Let me"}]},
                    {"type": "text", "text": "Hi"},
                ]
            },
            "Hi",
            "Let me",
        ),
        (
            {
                "content": [
                    {"type": "reasoning", "summary": [{"text": "Let me"}]},
                    {"type": "output_text", "text": "Hi"},
                ]
            },
            "Hi",
            "Let me",
        ),
        ({"content": ["H", "i"]}, "Hi", ""),
        ({"content": {"parts": [{"text": "Let me", "thought": True}, {"text": "Hi"}]}}, "Hi", "Let me"),
        (
            {
                "content": "<|channel|>analysis<|message|>Let me<|end|>"
                "<|start|>assistant<|channel|>final<|message|>Hi"
            },
            "Hi",
            "Let me",
        ),
    ],
)
def test_thinking_is_kept_apart(message: dict[str, Any], text: str, reasoning: str) -> None:
    reply = read_reply(chat(message=message))
    assert (reply.text, reply.reasoning) == (text, reasoning)
    assert answer_of(chat(message=message)) == (text, reasoning)


@pytest.mark.parametrize(
    "text",
    [
        "Use the <think> tag, and close it with </think> when you are done.",
        "The template ends with `</think>` and a newline.",
        "```\n<think>\nhm\n</think>\n```\nis what the model writes.",
        "I think so.",
    ],
)
def test_a_text_that_speaks_of_marks_is_left_alone(text: str) -> None:
    assert split_thinking(text) == (text, "")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + chat(),
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + chat(),
        b"\n\n  " + chat() + b"\n",
        b"data: " + chat() + b"\n\ndata: [DONE]\n\n",
        "\ufeff".encode("utf-16-le") + chat().decode().encode("utf-16-le"),
        b'data: {"model":"gpt-4-0613","choices":[{"delta":{"role":"assistant","content":"Hel"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\ndata: [DONE]\n',
    ],
)
def test_a_reply_is_read_whatever_stands_around_it(raw: bytes) -> None:
    reply = read_reply(raw)
    assert (reply.text, reply.outcome, reply.claim) == ("Hello", "stop", Claim(9, 2))


def test_a_reply_that_others_can_read_with_a_json_path_is_plain() -> None:
    assert read_reply(chat()).plain
    assert read_reply(chat(message={"reasoning_content": "hm"})).plain
    for raw in (chat("<think>a</think>b"), chat(["part"]), b"\n" + b": x\n" + chat()):
        assert not read_reply(raw).plain


# Nothing that a server may send crashes the reader, or what comes after it.

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words
json_values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=8
)


def some(*values: object) -> st.SearchStrategy[Any]:
    return st.sampled_from(values) | json_values


replies = st.fixed_dictionaries(
    {},
    optional={
        "choices": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "message": json_values
                    | st.fixed_dictionaries({}, optional={"content": some("Hi"), "refusal": some("No")}),
                    "finish_reason": some("stop", "length", "content_filter"),
                },
            ),
            max_size=2,
        ),
        "usage": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "prompt_tokens": some(1),
                "completion_tokens": some(2),
                "prompt_tokens_details": some({}),
            },
        ),
        "model": some("m"),
        "error": json_values | st.fixed_dictionaries({}, optional={"message": some("x"), "code": some("y")}),
    },
)
bodies = st.binary(max_size=50) | (replies | json_values).map(orjson.dumps)


def _read(raw: bytes) -> Reply | AskError | RunStopped:
    try:
        return read_reply(raw)
    except (AskError, RunStopped) as error:
        return error


@given(bodies)
def test_any_body_of_200_is_a_reply_or_an_error_of_ours(raw: bytes) -> None:
    found = _read(raw)
    if isinstance(found, Reply):
        assert isinstance(found.text, str)
        found.finish_reason.encode()
    else:
        assert found.raw == raw
        str(found).encode()


@given(st.integers(300, 599), bodies, words | numbers)
def test_any_error_body_is_a_typed_error_with_words(status: int, raw: bytes, after: str) -> None:
    error = read_error(status, {"retry-after": after}, raw)
    assert str(error).startswith(f"HTTP {status}: ")
    assert isinstance(error, AskError | RunStopped)


CUT_EMOJI = rb"\ud83d"  # half of a surrogate pair: what a server makes that cuts by UTF-16 units


def test_half_an_emoji_in_an_error_can_be_stored_and_printed() -> None:
    raw = error_body("PLACE", "PLACE", "PLACE").replace(b"PLACE", b"too long: " + CUT_EMOJI)
    for status in (400, 401, 429, 500):
        str(read_error(status, {}, raw)).encode()
    with pytest.raises(ServerFault) as caught:
        read_reply(raw)
    str(caught.value).encode()


def test_half_an_emoji_beside_the_text_can_be_stored() -> None:
    raw = chat("Hi", "PLACE", model="PLACE").replace(b"PLACE", CUT_EMOJI)
    reply = read_reply(raw)
    (reply.finish_reason + reply.model).encode()


@pytest.mark.parametrize("text", ["\u200b\ufeff", " \u2060\n", "\u00ad", "\x00", "\u200e \u202c"])
def test_a_text_that_nobody_can_see_is_no_answer(text: str) -> None:
    assert read_reply(chat(text)).outcome == "empty"


@pytest.mark.parametrize("text", [".", "\u200bx", "👩‍👩‍👧", "\u0300"])
def test_a_text_of_which_something_is_seen_is_one(text: str) -> None:
    assert read_reply(chat(text)).outcome == "stop"


@pytest.mark.parametrize(
    "finish", ["MaxTokens", "max_tokens_reached", "ERROR_LIMIT", "MAX_TOKENS", "max-length"]
)
def test_an_answer_that_is_cut_is_one_however_that_is_spelt(finish: str) -> None:
    assert read_reply(chat("Half", finish)).outcome == "length"


@pytest.mark.parametrize(
    "text",
    [
        "<THINK>hm</THINK>Good answer.",
        "<Think>hm</think>\n\nGood answer.",
        "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Good answer.<|END_RESPONSE|>",
        "<|begin_of_thought|>hm<|end_of_thought|>\n\n<|begin_of_solution|>Good answer.<|end_of_solution|>",
        "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Good answer.",
    ],
)
def test_no_mark_stays_in_an_answer(text: str) -> None:
    reply = read_reply(chat(text))
    assert (reply.text, reply.reasoning) == ("Good answer.", "hm")


def test_a_completion_in_a_list_of_one_is_read() -> None:
    raw = b"[" + chat("Hello") + b"]"
    reply = read_reply(raw)
    assert (reply.text, reply.plain, answer_of(raw)) == ("Hello", False, ("Hello", ""))
