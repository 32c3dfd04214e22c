"""A key is a hash of exactly what is asked: nothing else moves it, and everything in it does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.collect.plan import Plan, plan_of
from engine.collect.request_key import Sealer, canonical
from engine.collect.settings import Settings
from engine.provider.tokens import tokenizer_for
from store.records import Instruction

Messages = list[dict[str, str]]
Params = dict[str, Any]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
roles = st.sampled_from(["system", "user", "assistant", "developer"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": texts}, optional={"name": texts}),
    min_size=1,
    max_size=4,
)
# Numbers as people write them: RFC 8785 and Python's json write these alike (1e-7 they do not).
hundredths = st.integers(-300, 300).map(lambda n: n / 100)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | hundredths | texts
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6
)
params = st.dictionaries(texts.filter(lambda k: k not in ("model", "messages")), values, max_size=5)
models = texts.filter(bool)

ASKED: Messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why? 😀"},
]
PARAMS: Params = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 512, "stop": ["\n", "###"]}


def key(asked: Messages = ASKED, model: str = "gpt-4", given: Params = PARAMS, sample: int = 0) -> bytes:
    return Sealer(model, given).seal(asked, sample + 1)[1][sample]


def whole(value: Any) -> Any:
    """RFC 8785's numbers, written anew: 1.0 is 1."""
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def backwards(value: Any) -> Any:
    """The same with all names in reverse order."""
    if isinstance(value, dict):
        return {k: backwards(v) for k, v in reversed(value.items())}
    return [backwards(v) for v in value] if isinstance(value, list) else value


def with_fractions(value: Any) -> Any:
    """The same with whole numbers as floats."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if isinstance(value, dict):
        return {k: with_fractions(v) for k, v in value.items()}
    return [with_fractions(v) for v in value] if isinstance(value, list) else value


# What a key is.


@given(messages, models, params, st.integers(0, 11))
def test_the_key_is_the_sha_256_of_the_canonical_json(
    asked: Messages, model: str, given: Params, sample: int
) -> None:
    told = {"messages": asked, "model": model, "params": whole(given), "sample": sample}
    # orjson sorts names by their UTF-8, which is by code point, as Python does.
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert key(asked, model, given, sample) == hashlib.sha256(text.encode()).digest()


@given(messages, models, params)
def test_the_body_is_exactly_model_messages_and_parameters(
    asked: Messages, model: str, given: Params
) -> None:
    body, _ = Sealer(model, given).seal(asked, 1)
    assert json.loads(body) == {"model": model, "messages": asked, **given}
    assert orjson.loads(body) == json.loads(body)


def test_keys_stay_what_they_were() -> None:
    """If this fails, every ledger in the world asks everything again."""
    assert key().hex() == "fc3d24b1b755c1c2273ed3a675b2ead33cf479f1e3c6a61b29d50856d2d53eb6"
    assert key(sample=1).hex() == "8dce772249dc1cf9555591a8b142a75a906c5504806ac182e32ef548af703525"


# What does not matter.


@given(messages, params)
def test_the_order_of_names_does_not_matter(asked: Messages, given: Params) -> None:
    assert key(backwards(asked), "m", backwards(given)) == key(asked, "m", given)


@given(params)
def test_one_and_one_point_zero_are_the_same(given: Params) -> None:
    assert key(given=with_fractions(given)) == key(given=given)


def test_negative_zero_is_zero() -> None:
    assert key(given={"presence_penalty": -0.0}) == key(given={"presence_penalty": 0})


@given(st.integers(1, 8), st.integers(1, 8))
def test_asking_for_more_samples_does_not_change_the_first_ones(few: int, more: int) -> None:
    sealer = Sealer("m", PARAMS)
    assert sealer.seal(ASKED, few + more)[1][:few] == sealer.seal(ASKED, few)[1]


NOT_SENT: list[dict[str, Any]] = [
    {"stage": "another"},
    {"base_url": "http://127.0.0.1:8080/v1"},
    {"api_key": "sk-other"},
    {"proxy": "http://proxy:3128"},
    {"rpm": 10, "tpm": 1000, "rpd": 100, "tpd": 5000},
    {"concurrency": 3},
    {"samples": 4},
    {"attempts": 2, "timeout": 5.0, "give_up": 1.0},
    {"budget": 1.0, "price_in": 1.0, "price_out": 2.0},
    {"limit": 5},
]


def plan(**settings: Any) -> Plan:
    return plan_of(Settings(**{"model": "gpt-4", **settings}), tokenizer_for("gpt-4"))


def first_key(made: Plan, item: Instruction) -> bytes:
    return made.seal(item)[2][0]


@pytest.mark.parametrize("changed", NOT_SENT, ids=lambda changed: "-".join(changed))
def test_what_is_not_sent_does_not_matter(changed: dict[str, Any]) -> None:
    item = Instruction("7", "Name a comet.")
    assert first_key(plan(**changed), item) == first_key(plan(), item)


def test_the_id_and_the_old_output_of_a_row_do_not_matter() -> None:
    one, other = Instruction("1", "a", "b", "c"), Instruction("2", "a", "b", "d")
    assert first_key(plan(), one) == first_key(plan(), other)


SENT: list[dict[str, Any]] = [
    {"model": "gpt-4o"},
    {"temperature": 0.7},
    {"top_p": 0.5},
    {"max_tokens": 511},
    {"param": {"seed": 7}},
    {"omit": ("top_p",)},
    {"system": "Be brief."},
    {"prompt": "{instruction}"},
]


@pytest.mark.parametrize("changed", SENT, ids=lambda changed: "-".join(changed))
def test_every_setting_that_is_sent_matters(changed: dict[str, Any]) -> None:
    item = Instruction("7", "Name a comet.")
    assert first_key(plan(**changed), item) != first_key(plan(), item)


@pytest.mark.parametrize("field", ["instruction", "input"])
def test_the_words_of_a_row_matter(field: str) -> None:
    item = Instruction("7", "Name a comet.", "Halley")
    changed = dataclasses.replace(item, **{field: "other"})
    assert first_key(plan(), changed) != first_key(plan(), item)


# What matters.


@given(messages, st.data())
def test_every_character_of_every_message_matters(asked: Messages, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(asked) - 1))
    name = data.draw(st.sampled_from(sorted(asked[number])))
    old = asked[number][name]
    at = data.draw(st.integers(0, len(old)))
    new = data.draw(texts.filter(bool))
    cut = data.draw(st.integers(at, len(old)))
    changed = old[:at] + new + old[cut:]
    assume(changed != old)
    other = [{**m, name: changed} if i == number else m for i, m in enumerate(asked)]
    assert key(other) != key(asked)


@given(messages, messages)
def test_different_conversations_have_different_keys(one: Messages, other: Messages) -> None:
    assert (key(one) == key(other)) == (one == other)


@given(messages, st.randoms(use_true_random=False))
def test_the_order_of_messages_matters(asked: Messages, random: Any) -> None:
    shuffled = list(asked)
    random.shuffle(shuffled)
    assert (key(shuffled) == key(asked)) == (shuffled == asked)


@given(models, models)
def test_the_model_matters(one: str, other: str) -> None:
    assert (key(model=one) == key(model=other)) == (one == other)


@given(params, params)
def test_every_parameter_matters(one: Params, other: Params) -> None:
    alike = json.dumps(whole(one), sort_keys=True) == json.dumps(whole(other), sort_keys=True)
    assert (key(given=one) == key(given=other)) == alike


@given(params, texts.filter(lambda k: k not in ("model", "messages")), values)
def test_one_parameter_more_matters(given: Params, name: str, value: Any) -> None:
    assume(name not in given)
    assert key(given={**given, name: value}) != key(given=given)


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_index_of_the_sample_matters(one: int, other: int) -> None:
    assert (key(sample=one) == key(sample=other)) == (one == other)


def test_true_is_not_one_and_text_is_not_a_number() -> None:
    kinds: list[Any] = [True, 1, "1", [1], None, {"1": 1}]
    assert len({key(given={"x": kind}) for kind in kinds}) == len(kinds)


def test_a_text_cannot_pass_for_another_field() -> None:
    """Quotes inside a message stay inside it."""
    sly = '","role":"system'
    assert key([{"role": "user", "content": "a" + sly}]) != key([{"content": "a", "role": "system"}])
    assert key(model='m","params":{}') != key(model="m", given={})


# Numbers.


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (1.0, 1),
        (-2.0, -2),
        (0.7, 0.7),
        (2.0**52, 2**52),
        (2.0**53, 2.0**53),  # from here on a float no longer tells whole numbers apart
        (1e300, 1e300),
        (True, True),
        ({"a": [1.0, (2.0, "3.0")]}, {"a": [1, [2, "3.0"]]}),
    ],
)
def test_whole_floats_become_integers_at_any_depth(given: Any, wanted: Any) -> None:
    found = canonical(given)
    assert found == wanted
    assert type(found) is type(wanted)
