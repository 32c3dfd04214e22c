"""The index knows every key that the ledger knows, and a hit is only ever a candidate."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.key_index import ANSWERED, DUE, FAILED, TAKEN, KeyIndex, load_index
from store.queries import connect_reader
from tests.support.ledgers import Book, opened, request


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def loaded(keys: list[bytes], states: list[int] | None = None) -> KeyIndex:
    index = KeyIndex()
    index.load(b"".join(k[:8] for k in keys), bytes(states or [DUE] * len(keys)))
    return index


def added(keys: list[bytes]) -> KeyIndex:
    index = KeyIndex()
    for number, one in enumerate(keys, 1):
        index.add(one, number)
    return index


@pytest.mark.parametrize("make", [loaded, added])
def test_every_key_is_found_under_its_number(make: object) -> None:
    keys = [key(n) for n in range(5000)]
    index = loaded(keys) if make is loaded else added(keys)
    assert len(index) == 5000
    assert [list(index.candidates(one)) for one in keys] == [[n] for n in range(1, 5001)]
    assert not any(list(index.candidates(key(n))) for n in range(5000, 10_000))


def test_an_empty_index_knows_nothing() -> None:
    for index in (KeyIndex(), loaded([])):
        assert len(index) == 0
        assert list(index.candidates(key(1))) == []


short = st.binary(min_size=1, max_size=2).map(lambda head: head * 4 + bytes(24 + 4 * (2 - len(head))))
keys_of = st.lists(short, max_size=30)


@given(keys_of, keys_of)
def test_it_finds_what_a_dictionary_would(stored: list[bytes], later: list[bytes]) -> None:
    """Some of these keys have equal fingerprints: all their numbers are candidates."""
    index, wanted = loaded(stored), {}
    for number, one in enumerate(stored, 1):
        wanted.setdefault(one[:8], set()).add(number)
    for number, one in enumerate(later, len(stored) + 1):
        index.add(one, number, TAKEN)
        wanted.setdefault(one[:8], set()).add(number)
    for one in [*stored, *later, bytes(32), b"\xff" * 32]:
        assert set(index.candidates(one)) == wanted.get(one[:8], set())


def test_numbers_and_states_are_kept() -> None:
    index = loaded([key(1), key(2), key(3)], [ANSWERED, FAILED, DUE])
    index.add(key(4), 4, TAKEN)
    assert [index.state(n) for n in (1, 2, 3, 4)] == [ANSWERED, FAILED, DUE, TAKEN]
    index.mark(3, TAKEN)
    index.mark(4, ANSWERED)
    assert [index.state(n) for n in (1, 2, 3, 4)] == [ANSWERED, FAILED, TAKEN, ANSWERED]
    assert len(index) == 4


def test_a_copy_goes_its_own_way() -> None:
    index = loaded([key(1)])
    index.add(key(2), 2)
    other = index.copy()
    other.add(key(3), 3, TAKEN)
    other.mark(1, ANSWERED)
    assert (len(index), index.state(1), list(index.candidates(key(3)))) == (2, DUE, [])
    assert (len(other), other.state(1), list(other.candidates(key(2)))) == (3, ANSWERED, [2])


async def test_it_is_loaded_with_what_the_ledger_holds(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in range(1, 7):
            book.place(number)
        for number in (2, 4):
            book.answer(number)
        book.fail(3)
        book.fail(4)  # in the end it was answered
        book.answer(4)
    reader = connect_reader(tmp_path)
    index = KeyIndex()
    load_index(reader, index)
    reader.close()
    assert [next(index.candidates(request(n).key)) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert [index.state(n) for n in range(1, 7)] == [DUE, ANSWERED, FAILED, ANSWERED, DUE, DUE]


async def test_a_new_ledger_loads_an_empty_index(tmp_path: Path) -> None:
    async with opened(tmp_path):
        reader = connect_reader(tmp_path)
        index = KeyIndex()
        load_index(reader, index)
        reader.close()
    assert len(index) == 0
