"""A served folder: in fp32 what it answers depends on the request alone, whoever else is in the batch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from tests.support import tiny
from tests.support.student import Place, ask, served, session, texts

pytestmark = pytest.mark.filterwarnings("default")
LENGTHS = (3, 40, 9, 1, 25, 60, 14, 5)
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "enum": [1, 2, 3]}, "why": {"enum": ["good", "bad"]}},
    "required": ["score", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def place(pupil: Path) -> Iterator[Place]:
    """In fp32, whatever this processor is fast at: no more than that is promised about batches."""
    with served(pupil, "--parallel", 5, "--precision", "fp32") as found:
        yield found


def in_bf16(pupil: Path, parallel: int) -> contextlib.AbstractContextManager[Place]:
    return served(pupil, "--parallel", parallel, "--precision", "bf16")


def prompts(count: int = len(LENGTHS)) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{tiny.WORDS[n % 8]} " * (1 + 3 * n)}] for n in range(count)]


async def both_ways(place: Place, **settings: Any) -> tuple[list[Any], list[Any]]:
    """The same requests one by one and all together, more of them than fit in at once."""
    asked = [{"messages": m, "max_tokens": n, **settings} for m, n in zip(prompts(), LENGTHS, strict=True)]
    async with session() as client:
        alone = [await ask(client, place, **one) for one in asked]
        together = await asyncio.gather(*(ask(client, place, **one) for one in asked))
    return [(texts(r), r["usage"]) for r in alone], [(texts(r), r["usage"]) for r in together]


async def test_a_batch_writes_what_each_row_writes_alone(place: Place) -> None:
    alone, together = await both_ways(place, temperature=0)
    assert together == alone
    assert len({str(one) for one in alone}) == len(LENGTHS)


async def test_a_seed_gives_the_same_answer_whoever_else_is_in_the_batch(place: Place) -> None:
    alone, together = await both_ways(place, temperature=1.3, top_p=0.9, seed=7)
    assert together == alone
    other, _ = await both_ways(place, temperature=1.3, top_p=0.9, seed=8)
    assert other != alone


async def test_alone_in_its_batch_a_seed_gives_the_same_answer_in_bf16_too(pupil: Path) -> None:
    with in_bf16(pupil, parallel=1) as alone_there:
        alone, together = await both_ways(alone_there, temperature=1.3, top_p=0.9, seed=7)
    assert together == alone


async def test_the_fingerprint_says_in_which_precision_an_answer_was_written(
    place: Place, pupil: Path
) -> None:
    """What a seed promises depends on it, so whoever compares two replies must see it; streams say it too."""
    with in_bf16(pupil, parallel=5) as other:
        assert other.model == place.model
        for where, ending in ((place, "-fp32-cpu"), (other, "-bf16-cpu")):
            async with session() as client:
                whole = await ask(client, where)
                body = where.body(stream=True)
                async with client.post(f"{where.url}/chat/completions", json=body) as response:
                    first = json.loads((await response.text()).splitlines()[0].removeprefix("data: "))
            assert whole["system_fingerprint"] == first["system_fingerprint"] == where.model + ending


async def test_it_writes_what_plain_transformers_writes(place: Place, pupil: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(pupil)
    tokenizer: Any = AutoTokenizer.from_pretrained(pupil)
    async with session() as client:
        for messages in prompts(3):
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            written = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=1)
            expected = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found = await ask(client, place, messages=messages, max_tokens=20, temperature=0)
            assert texts(found) == [expected]
            assert found["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


async def test_without_a_seed_answers_differ(place: Place) -> None:
    async with session() as client:
        found = await asyncio.gather(*(ask(client, place) for _ in range(3)))
    assert len({texts(one)[0] for one in found}) == 3


async def test_choices_are_numbered_differ_and_are_counted(place: Place) -> None:
    async with session() as client:
        one = await ask(client, place, seed=3)
        many = await ask(client, place, seed=3, n=7)
        again = await ask(client, place, seed=3, n=7)
    assert texts(many) == texts(again)
    assert texts(many)[0] == texts(one)[0]
    assert len(set(texts(many))) == 7
    assert [choice["index"] for choice in many["choices"]] == list(range(7))
    assert many["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert (
        many["usage"]["completion_tokens"]
        == 84
        == many["usage"]["total_tokens"] - one["usage"]["prompt_tokens"]
    )
    assert {choice["finish_reason"] for choice in many["choices"]} == {"length"}


async def test_an_answer_ends_before_the_stop_string_wherever_tokens_end(place: Place) -> None:
    """A token is a byte here, so that every string of two signs lies across a border."""
    async with session() as client:
        whole = await ask(client, place, temperature=0, max_tokens=40)
        text = texts(whole)[0]
        stop = text[10:13]
        assert stop
        at = text.index(stop)
        for given in (stop, ["never there", stop]):
            found = await ask(client, place, temperature=0, max_tokens=40, stop=given)
            assert texts(found) == [text[:at]]
            assert found["choices"][0]["finish_reason"] == "stop"
            assert found["usage"]["completion_tokens"] < 40


async def test_a_stream_is_the_answer_in_pieces(place: Place) -> None:
    async with session() as client:
        whole = await ask(client, place, seed=1, n=2, max_tokens=30)
        body = place.body(seed=1, n=2, max_tokens=30, stream=True, stream_options={"include_usage": True})
        async with client.post(f"{place.url}/chat/completions", json=body) as response:
            assert response.content_type == "text/event-stream"
            events = [line[6:] for line in (await response.text()).splitlines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks.pop()["usage"] == whole["usage"]
    said = ["", ""]
    for choice in (chunk["choices"][0] for chunk in chunks):
        said[choice["index"]] += choice["delta"].get("content", "")
    assert said == texts(whole)
    assert len(chunks) > 10


async def test_json_follows_the_schema_beside_free_answers(place: Place) -> None:
    pytest.importorskip("xgrammar", reason="not installed (requirements/train-nodeps.txt)")
    wanted = {"type": "json_schema", "json_schema": {"name": "score", "schema": SCHEMA}}
    async with session() as client:
        free, *held = await asyncio.gather(
            ask(client, place, temperature=0),
            *(ask(client, place, seed=n, max_tokens=200, response_format=wanted) for n in range(4)),
        )
        assert texts(free) == texts(await ask(client, place, temperature=0))
        objects = [orjson.loads(texts(one)[0]) for one in held]
        assert {one["choices"][0]["finish_reason"] for one in held} == {"stop"}
        begun = await ask(client, place, response_format={"type": "json_object"}, seed=1)
        assert texts(begun)[0].startswith("{")
    assert all(found["score"] in (1, 2, 3) and found["why"] in ("good", "bad") for found in objects)


CHANGES: list[tuple[dict[str, Any] | bytes, int, str | None]] = [
    (b"{not json", 400, None),
    (b"[]", 400, None),
    ({"model": "gpt-4"}, 404, "model_not_found"),
    ({"messages": []}, 400, None),
    ({"messages": [{"role": "user", "content": "long " * 200}]}, 400, "context_length_exceeded"),
    ({"temperature": 2.5}, 400, "invalid_value"),
    ({"temperature": "hot"}, 400, "invalid_value"),
    ({"top_p": -1}, 400, "invalid_value"),
    ({"n": 0}, 400, "invalid_value"),
    ({"n": 10**6}, 400, "invalid_value"),
    ({"seed": 1.5}, 400, "invalid_value"),
    ({"max_tokens": 0}, 400, None),
    ({"max_completion_tokens": "many"}, 400, None),
    ({"stop": [""]}, 400, None),
    ({"stop": 7}, 400, None),
    ({"stream": "yes"}, 400, "invalid_type"),
    ({"logprobs": True}, 400, "unsupported_parameter"),
    ({"frequency_penalty": 0.5}, 400, "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
    ({"top_k": 5}, 400, "unknown_parameter"),
    ({"response_format": {"type": "xml"}}, 400, None),
    ({"response_format": {"type": "json_schema"}}, 400, None),
]


async def test_what_cannot_be_done_is_refused_in_openais_shape(place: Place) -> None:
    async with session() as client:
        for change, status, code in CHANGES:
            data = change if isinstance(change, bytes) else orjson.dumps(place.body(**change))
            async with client.post(f"{place.url}/chat/completions", data=data) as response:
                error = (await response.json())["error"]
            assert (response.status, error["code"]) == (status, code), (change, error)
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
        async with client.get(f"{place.url}/embeddings") as response:
            assert (response.status, response.content_type) == (404, "application/json")
        neutral = {"frequency_penalty": 0, "logprobs": False, "user": "me", "tools": None, "stop": None}
        await ask(client, place, **neutral)


async def test_a_schema_that_is_none_is_refused(place: Place) -> None:
    pytest.importorskip("xgrammar", reason="not installed (requirements/train-nodeps.txt)")
    for schema in ({"type": "no such type"}, {"$ref": "#/nowhere"}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        async with session() as client:
            body = place.body(response_format=wanted)
            async with client.post(f"{place.url}/chat/completions", json=body) as response:
                error = (await response.json())["error"]
                assert (response.status, error["param"]) == (400, "response_format")
                assert re.match(r"the schema cannot be followed: [A-Z]", error["message"])


async def test_an_answer_without_bound_ends_with_the_context(place: Place) -> None:
    async with session() as client:
        found = await ask(client, place, temperature=0, max_tokens=None)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["total_tokens"] == 512


async def test_a_client_that_goes_takes_its_rows_with_it(place: Place) -> None:
    """More rows than fit in at once, each of hundreds of tokens; then nobody waits for them."""
    async with session() as client:
        asking = asyncio.create_task(ask(client, place, n=60, max_tokens=400))
        while (await health(client, place))["running"] < 5:
            pass
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        found = await ask(client, place, temperature=0)
        left = await health(client, place)
    assert found["usage"]["completion_tokens"] == 12
    assert left["running"] + left["waiting"] == 0


async def health(client: aiohttp.ClientSession, place: Place) -> dict[str, Any]:
    async with client.get(place.url.removesuffix("/v1") + "/health") as response:
        found: dict[str, Any] = await response.json()
    assert (found["status"], found["model"]) == ("ok", place.model)
    return found


async def test_a_short_answer_waits_for_no_long_one(place: Place) -> None:
    async with session() as client:
        long = asyncio.create_task(ask(client, place, max_tokens=450, temperature=0))
        while (await health(client, place))["running"] < 1:
            pass
        await ask(client, place, max_tokens=2)
        assert not long.done()
        await long


async def test_its_name_follows_the_weights(place: Place, pupil: Path, tmp_path: Path) -> None:
    from engine.serve.command import name_of_folder

    async with session() as client, client.get(f"{place.url}/models") as response:
        (listed,) = (await response.json())["data"]
    assert listed["id"] == place.model == name_of_folder(pupil)
    assert place.model.startswith("pupil-")
    other = shutil.copytree(pupil, tmp_path / "pupil")
    assert name_of_folder(other) == place.model
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert name_of_folder(other) != place.model
