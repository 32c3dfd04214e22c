"""The fake provider keeps its promises: a test that leans on it can trust its counts."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from tests.support.cli import ROOT
from tests.support.provider import Config, Provider, content_key
from tests.support.provider_bucket import Bucket, Slots, duration

URL = "/v1/chat/completions"


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]  # of any case
    body: Any

    @property
    def text(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.body["error"])


def question(text: str = "What is a comet?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | more


class Asker:
    """A client of one provider."""

    def __init__(self, session: aiohttp.ClientSession, provider: Provider) -> None:
        self.session, self.provider = session, provider

    async def __call__(self, text: str = "What is a comet?", **more: Any) -> Got:
        return await self.send(question(text, **more))

    async def send(self, body: Any, path: str = URL, **headers: str) -> Got:
        url = self.provider.root_url + path
        raw = orjson.dumps(body)
        async with self.session.post(url, data=raw, headers=headers) as response:
            return Got(response.status, response.headers, orjson.loads(await response.read()))


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=100)
    async with aiohttp.ClientSession(connector=connector) as found:
        yield found


async def test_the_answer_belongs_to_its_question_and_is_the_same_every_time(
    session: aiohttp.ClientSession,
) -> None:
    texts = []
    for _ in range(2):
        async with Provider().running() as p:
            got = await Asker(session, p)("Why is the sky blue?")
        texts.append(got.text)
    wanted = hashlib.sha256(b"Why is the sky blue?").hexdigest()[:12]
    assert texts[0].startswith(f"[{wanted}] ")
    assert texts[0] == texts[1]
    usage = got.body["usage"]
    assert usage["prompt_tokens"] == 5 + 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_lengths_are_about_the_mean_and_capped_at_max_tokens(
    session: aiohttp.ClientSession,
) -> None:
    async with Provider(Config(mean_tokens=50, spread=0.3)).running() as p:
        ask = Asker(session, p)
        free = await asyncio.gather(*(ask(f"question {n}") for n in range(300)))
        capped = await ask("question 1", max_tokens=5)
    lengths = [got.body["usage"]["completion_tokens"] for got in free]
    assert sum(lengths) / len(lengths) == pytest.approx(50, rel=0.1)
    assert len(set(lengths)) > 20
    assert {got.body["choices"][0]["finish_reason"] for got in free} == {"stop"}
    assert capped.body["choices"][0]["finish_reason"] == "length"
    assert capped.body["usage"]["completion_tokens"] == 5


async def test_exact_tokens_are_those_of_the_text(session: aiohttp.ClientSession) -> None:
    from tests.support.provider_chat import encoding

    async with Provider(Config(exact_tokens=True)).running() as p:
        ask = Asker(session, p)
        whole, cut = await ask("Hello world"), await ask("Hello world", max_tokens=20)
    for got in (whole, cut):
        usage = got.body["usage"]
        assert usage["prompt_tokens"] == 3 + 3 + 1 + 2
        assert usage["completion_tokens"] == len(encoding().encode_ordinary(got.text))
    assert cut.body["choices"][0]["finish_reason"] == "length"


# Thinking


async def test_thinking_is_told_in_usage_and_counts_against_the_bound(
    session: aiohttp.ClientSession,
) -> None:
    config = Config(mean_tokens=50, thinking_tokens=100, thinking_sigma=0.5, thinking_shown=True)
    async with Provider(config).running() as p:
        ask = Asker(session, p)
        got = await asyncio.gather(*(ask(f"question {n}", max_tokens=10_000) for n in range(200)))
        again, cut = await ask("question 1", max_tokens=10_000), await ask("question 1", max_tokens=130)
    thought = sorted(g.body["usage"]["completion_tokens_details"]["reasoning_tokens"] for g in got)
    assert thought[100] == pytest.approx(100, rel=0.15)
    assert thought[31] == pytest.approx(100 / 1.65, rel=0.25)  # a sigma below the median
    for g in got:
        usage, message = g.body["usage"], g.body["choices"][0]["message"]
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        assert usage["completion_tokens"] > reasoning
        assert len(message["reasoning_content"].split()) == reasoning
    assert again.text == got[1].text
    assert again.body["usage"] != got[1].body["usage"]  # it thinks anew
    assert cut.body["usage"]["completion_tokens"] <= 130


async def test_a_bound_that_thinking_uses_up_leaves_no_text(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(thinking_tokens=5000, thinking_sigma=0)).running() as p:
        got = await Asker(session, p)(max_completion_tokens=512)
    choice, usage = got.body["choices"][0], got.body["usage"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert "reasoning_content" not in choice["message"]
    assert usage["completion_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] == 512
    assert p.counts.completion_tokens == 512


async def test_thinking_uses_the_bound_up_as_often_as_told(session: aiohttp.ClientSession) -> None:
    config = Config(mean_tokens=20, thinking_tokens=10, p_used_up=0.1, seed=3)
    async with Provider(config).running() as p:
        ask = Asker(session, p)
        got = await asyncio.gather(*(ask(f"{n}", max_completion_tokens=400) for n in range(500)))
        again = await asyncio.gather(*(ask(f"{n}", max_completion_tokens=400) for n in range(500)))
    empty = [n for n, g in enumerate(got) if not g.text]
    assert len(empty) == pytest.approx(50, abs=20)
    assert all(got[n].body["usage"]["completion_tokens"] == 400 for n in empty)
    assert [n for n in empty if not again[n].text] != empty  # asked again, it may go well
    assert p.counts.faults["used_up"] == len(empty) + sum(not g.text for g in again)


async def test_a_bound_is_ignored_from_some_reply_on(session: aiohttp.ClientSession) -> None:
    config = Config(mean_tokens=20, thinking_tokens=30, overrun_after=2, overrun=2.5)
    async with Provider(config).running() as p:
        ask = Asker(session, p)
        billed = [
            (await ask(f"{n}", max_completion_tokens=300)).body["usage"]["completion_tokens"]
            for n in range(4)
        ]
    assert max(billed[:2]) <= 300
    assert billed[2:] == [750, 750]
    assert p.counts.completion_tokens == sum(billed)


async def test_efforts_are_taken_or_refused_as_told(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(efforts=("low", "high"))).running() as p:
        ask = Asker(session, p)
        got = [await ask(reasoning_effort=effort) for effort in ("low", "high", "none")]
        assert (await ask()).status == 200
        p.control(efforts=())
        assert (await ask(reasoning_effort="low")).status == 400
        p.control(efforts=None)
        assert (await ask(reasoning_effort="any")).status == 200
    assert [g.status for g in got] == [200, 200, 400]
    assert (got[2].error["param"], got[2].error["code"]) == ("reasoning_effort", "unsupported_value")


async def test_a_token_takes_its_time(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(mean_tokens=50, spread=0, token_seconds=0.004)).running() as p:
        start = time.monotonic()
        await Asker(session, p)()
    assert 0.2 <= time.monotonic() - start < 2


# Limits. 600 tokens a minute in buckets of 60 s: 600 at the start, 10 a second after that.


@pytest.mark.parametrize(
    ("charge", "served"),
    [("upfront", 4), ("larger", 6)],  # 27 + 100, 100
)
async def test_tokens_are_charged_at_admission(
    session: aiohttp.ClientSession, charge: Any, served: int
) -> None:
    async with Provider(Config(tpm=600, charge=charge)).running() as p:
        ask = Asker(session, p)
        got = [await ask("x" * 80, max_tokens=100) for _ in range(served + 1)]
    assert [g.status for g in got] == [200] * served + [429]
    each = 127 if charge == "upfront" else 100
    left = int(got[0].headers["x-ratelimit-remaining-tokens"])
    assert left == pytest.approx(600 - each, abs=1)
    assert p.counts.charged_tokens == served * each
    assert p.counts.rejected == {"tokens": 1}
    assert got[-1].error["code"] == "rate_limit_exceeded"
    assert got[-1].error["type"] == "tokens"
    missing = each - (600 - served * each)
    assert float(got[-1].headers["retry-after"]) == pytest.approx(missing / 10, abs=1)


async def test_real_usage_is_charged_when_the_reply_goes_out(
    session: aiohttp.ClientSession,
) -> None:
    config = Config(tpm=100, charge="actual", latency=0.05, mean_tokens=60, spread=0)
    async with Provider(config).running() as p:
        ask = Asker(session, p)
        first = await asyncio.gather(*(ask("x" * 120, max_tokens=500) for _ in range(3)))
        late = await ask("x" * 120, max_tokens=500)
    assert [g.status for g in first] == [200] * 3  # nothing was known of them at admission
    assert late.status == 429
    assert p.counts.charged_tokens == 3 * (37 + 60)
    # in debt by 191 tokens, at 100 a minute
    assert float(late.headers["retry-after"]) == pytest.approx(191 * 0.6, abs=1.5)
    assert late.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_requests_are_limited_and_the_headers_tell(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(rpm=120, bucket_seconds=1)).running() as p:
        ask = Asker(session, p)
        got = [await ask() for _ in range(3)]
    assert [g.status for g in got] == [200, 200, 429]
    assert got[0].headers["x-ratelimit-limit-requests"] == "120"
    assert got[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert got[0].headers["x-ratelimit-reset-requests"].endswith("ms")
    assert "x-ratelimit-limit-tokens" not in got[0].headers
    assert got[2].error["type"] == "requests"
    assert got[2].headers["retry-after"] == "1"


async def test_waiting_as_told_is_enough(session: aiohttp.ClientSession) -> None:
    config = Config(rpm=1200, bucket_seconds=0.1, retry_after="ms")
    async with Provider(config).running() as p:
        ask = Asker(session, p)
        refused = [g for g in [await ask() for _ in range(4)] if g.status == 429][-1]
        await asyncio.sleep(int(refused.headers["retry-after-ms"]) / 1000)
        assert (await ask()).status == 200


async def test_a_date_can_say_when_to_come_back(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(rpm=1, retry_after="date")).running() as p:
        ask = Asker(session, p)
        told = [await ask() for _ in range(2)][1].headers["retry-after"]
    assert parsedate_to_datetime(told).timestamp() == pytest.approx(time.time() + 60, abs=2)


async def test_a_rejected_request_counts_only_if_told(session: aiohttp.ClientSession) -> None:
    left = {}
    for counts in (False, True):
        config = Config(rpm=60, tpm=60, rejected_count=counts)
        async with Provider(config).running() as p:
            ask = Asker(session, p)
            got = [await ask("x", max_tokens=50) for _ in range(3)]
        assert [g.status for g in got] == [200, 429, 429]
        left[counts] = int(got[-1].headers["x-ratelimit-remaining-requests"])
    assert left == {False: 59, True: 57}


async def test_what_never_fits_is_too_large(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(tpm=1000)).running() as p:
        ask = Asker(session, p)
        got = await ask(max_tokens=1000)
        p.control(too_large_tokens=2000)
        taken = await ask(max_tokens=1000)
        after = await ask(max_tokens=10)
    assert got.status == 429
    assert "Request too large for gpt-4o" in got.error["message"]
    assert got.error["type"] == "tokens"
    assert "retry-after" not in got.headers
    assert p.counts.rejected == {"too_large": 1, "tokens": 1}
    assert (taken.status, after.status) == (200, 429)  # a full bucket goes into debt


@pytest.mark.parametrize(
    ("headers", "shown"),
    [("all", [True, True]), ("none", [False, False]), ("limits_only_on_429", [False, True])],
)
async def test_headers_can_be_missing(
    session: aiohttp.ClientSession, headers: Any, shown: list[bool]
) -> None:
    async with Provider(Config(rpm=1, headers=headers)).running() as p:
        got = [await Asker(session, p)() for _ in range(2)]
    assert [g.status for g in got] == [200, 429]
    assert ["x-ratelimit-limit-requests" in g.headers for g in got] == shown


@pytest.mark.parametrize(("snapshot", "left"), [("reply", {5}), ("admission", {5, 6, 7, 8, 9})])
async def test_the_snapshot_is_of_the_reply_or_of_the_admission(
    session: aiohttp.ClientSession, snapshot: Any, left: set[int]
) -> None:
    async with Provider(Config(rpm=10, snapshot=snapshot, latency=0.1)).running() as p:
        ask = Asker(session, p)
        got = await asyncio.gather(*(ask(f"{n}") for n in range(5)))
    assert {int(g.headers["x-ratelimit-remaining-requests"]) for g in got} == left


# Time


async def test_throughput_saturates_at_the_knee(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(latency=0.05, knee=4)).running() as p:
        ask = Asker(session, p)
        start = time.monotonic()
        await asyncio.gather(*(ask(f"{n}") for n in range(48)))
        took = time.monotonic() - start
    assert 48 * 0.05 / 4 - 0.1 < took < 2 * 48 * 0.05 / 4  # without the knee 0.05
    assert p.counts.max_in_flight == 48


def test_slots_are_first_come_first_served_and_may_change_in_number() -> None:
    slots = Slots(2, now=0.0)
    assert [slots.finish(1.0, now=0.0) for _ in range(5)] == [1, 1, 2, 2, 3]
    slots.resize(3, now=2.0)
    assert [slots.finish(1.0, now=2.0) for _ in range(3)] == [3, 3, 4]
    slots.resize(1, now=2.0)
    assert slots.finish(1.0, now=2.0) == 5
    slots.resize(None, now=2.0)
    assert slots.finish(1.0, now=2.0) == 3


def test_a_bucket_refills_continuously_up_to_its_capacity() -> None:
    bucket = Bucket(60, seconds=10, now=0.0)
    bucket.take(15, now=0.0)
    assert bucket.wait(1, now=2.0) == pytest.approx(4.0)
    assert bucket.wait(1, now=6.0) == 0
    assert bucket.refill(now=100.0) == 10
    assert bucket.wait(50, now=100.0) == 0


def test_durations_are_written_as_in_the_headers() -> None:
    seconds = [0, 0.12, 0.9999, 1, 1.5, 59.97, 60, 360, 3600.5]
    written = ["0s", "120ms", "1s", "1s", "1.5s", "59.97s", "1m0s", "6m0s", "1h0m0.5s"]
    assert [duration(s) for s in seconds] == written


# Faults


@pytest.mark.parametrize(
    ("fault", "status", "billed", "charged"),
    [
        ("500", 500, 0, 1),
        ("503", 503, 0, 0),
        ("429", 429, 0, 0),
        ("filter_400", 400, 0, 1),
        ("empty", 200, 1, 1),
        ("filter", 200, 1, 1),
        ("refusal", 200, 1, 1),
    ],
)
async def test_faults_that_can_be_read(
    session: aiohttp.ClientSession, fault: str, status: int, billed: int, charged: int
) -> None:
    async with Provider(Config(**{f"p_{fault}": 1.0}, rpm=60)).running() as p:  # type: ignore[arg-type]
        got = await Asker(session, p)()
    assert got.status == status
    assert (p.counts.billed, p.counts.admitted) == (billed, charged)
    assert p.counts.faults == {fault: 1}
    assert p.counts.rejected == ({"spurious": 1} if fault == "429" else {})
    if fault == "filter_400":
        assert got.error["code"] == "content_filter"
    if fault == "filter":
        assert got.body["choices"][0]["finish_reason"] == "content_filter"
    if fault == "empty":
        choices = got.body["choices"]
        assert choices == [] or choices[0]["message"]["content"] is None
    if fault == "refusal":
        message = got.body["choices"][0]["message"]
        assert message["content"] is None
        assert message["refusal"]


@pytest.mark.parametrize(
    ("fault", "error", "billed"),
    [
        ("reset_before", aiohttp.ClientConnectionError, 0),
        ("reset_after", aiohttp.ClientConnectionError, 1),
        ("truncate", aiohttp.ClientPayloadError, 1),
        ("malformed", orjson.JSONDecodeError, 1),
    ],
)
async def test_faults_that_cannot_be_read(
    session: aiohttp.ClientSession, fault: str, error: type[Exception], billed: int
) -> None:
    async with Provider(Config(**{f"p_{fault}": 1.0})).running() as p:  # type: ignore[arg-type]
        with pytest.raises(error):
            await Asker(session, p)()
    assert p.counts.billed == billed
    assert p.counts.faults == {fault: 1}
    assert p.counts.in_flight == 0


async def test_a_huge_reply_is_as_large_as_told(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(p_huge=1, huge_bytes=1_000_001)).running() as p:
        got = await Asker(session, p)()
    assert got.headers["Content-Length"] == "1000001"
    assert got.text.startswith("[")


@pytest.mark.parametrize("billed", [True, False])
async def test_a_stalled_reply_is_held_and_billed_or_not(
    session: aiohttp.ClientSession, billed: bool
) -> None:
    config = Config(p_stall=1, stall_seconds=0.1, stall_billed=billed)
    async with Provider(config).running() as p:
        start = time.monotonic()
        got = await Asker(session, p)()
    assert time.monotonic() - start >= 0.1
    assert got.status == (200 if billed else 504)
    assert p.counts.billed == billed


@pytest.mark.parametrize("billed", [True, False])
async def test_hanging_up_on_work_is_billed_as_told(session: aiohttp.ClientSession, billed: bool) -> None:
    async with Provider(Config(latency=30, bill_abandoned=billed)).running() as p:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Asker(session, p)(), 0.1)
        await until(lambda: p.counts.in_flight == 0)
    assert p.counts.billed == billed
    assert p.counts.faults == {"abandoned": 1}


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what happens in the server raises no event here
            await asyncio.sleep(0.005)


async def test_faults_come_as_often_as_told_and_repeat(session: aiohttp.ClientSession) -> None:
    runs = []
    for _ in range(2):
        async with Provider(Config(p_500=0.2, p_429=0.1, seed=7)).running() as p:
            ask = Asker(session, p)
            got = await asyncio.gather(*(ask(f"{n % 100}") for n in range(1000)))
        runs.append((p.counts.faults, sorted((g.status, str(g.body)) for g in got if g.status > 200)))
    assert runs[0] == runs[1]
    assert runs[0][0]["500"] == pytest.approx(200, abs=40)
    assert runs[0][0]["429"] == pytest.approx(100, abs=30)


async def test_refusals_by_a_limit_do_not_change_what_fails(
    session: aiohttp.ClientSession,
) -> None:
    seen = []
    for rpm in (None, 1200):
        async with Provider(Config(p_500=0.5, rpm=rpm, bucket_seconds=0.05)).running() as p:
            ask, got = Asker(session, p), list[int]()
            while len(got) < 6:
                status = (await ask()).status
                got += [status] if status != 429 else []
        seen.append(got)
    assert p.counts.rejected["requests"] > 0
    assert seen[0] == seen[1]
    assert set(seen[0]) == {200, 500}


async def test_poison_is_refused_always_and_nothing_else_is(
    session: aiohttp.ClientSession,
) -> None:
    async with Provider(Config(poison="plutonium", poison_status=500)).running() as p:
        ask = Asker(session, p)
        got = [(await ask(text)).status for text in ("a", "of plutonium", "b", "of plutonium")]
    assert got == [200, 500, 200, 500]
    assert p.counts.faults == {"poison": 2}


# States


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ({"outage": True}, 503, None),
        ({"dead_model": True}, 404, "model_not_found"),
        ({"bad_key": True}, 401, "invalid_api_key"),
        ({"expect_key": "sk-other"}, 401, "invalid_api_key"),
        ({"forbidden": True}, 403, "forbidden"),
        ({"quota_after": 1}, 429, "insufficient_quota"),
        ({"refuse_params": ["temperature"]}, 400, "unsupported_parameter"),
    ],
)
async def test_states_are_switched_while_it_runs(
    session: aiohttp.ClientSession, state: dict[str, Any], status: int, code: str | None
) -> None:
    async with Provider().running() as p:
        ask = Asker(session, p)
        assert (await ask(temperature=1)).status == 200
        assert (await ask.send(state, "/control")).status == 200
        got = await ask(temperature=1)
        assert (await ask.send(dict.fromkeys(state), "/control")).status == 200
    assert (got.status, got.error["code"]) == (status, code)
    assert got.error["param"] == ("temperature" if "refuse_params" in state else None)
    assert p.counts.billed == 1


async def test_an_outage_can_drop_connections(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(outage=True, outage_kind="drop")).running() as p:
        with pytest.raises(aiohttp.ClientConnectionError):
            await Asker(session, p)()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(p.base_url + "/models")
        p.control(outage=False)
        async with session.get(p.base_url + "/models") as response:
            assert (await response.json())["data"][0]["id"] == "gpt-4o"


async def test_the_right_key_opens(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(expect_key="sk-test")).running() as p:
        got = await Asker(session, p).send(question(), Authorization="Bearer sk-test")
    assert got.status == 200


async def test_nonsense_is_refused(session: aiohttp.ClientSession) -> None:
    async with Provider().running() as p:
        ask = Asker(session, p)
        bad: list[Any] = [[], {"model": "m"}, {"model": "m", "messages": []}, {"messages": [1]}]
        assert [(await ask.send(body)).status for body in bad] == [400] * 4
        assert (await ask.send({"no_such_field": 1}, "/control")).status == 400
        assert (await ask.send({"charge": "cash"}, "/control")).status == 400
    assert p.counts.faults == {"bad_request": 4}
    with pytest.raises(ValueError, match="more than 1"):
        Config(p_500=0.6, p_503=0.6)


# Counts


async def test_counts_are_right(session: aiohttp.ClientSession) -> None:
    async with Provider(Config(rpm=3)).running() as p:
        ask = Asker(session, p)
        a, b = question("a"), question("b")
        got = [
            await ask.send(body, **{"Idempotency-Key": key})
            for body, key in ((a, "k1"), (a, "k2"), (b, "k3"), (b, "k4"))
        ]
        async with session.get(p.root_url + "/counts") as response:
            seen = await response.json()
        async with session.get(p.root_url + "/counts?contents=0") as response:
            assert (await response.json())["contents"] == {}
    contents = p.counts.contents
    assert (contents[content_key(a)].asked, contents[content_key(a)].billed) == (2, 2)
    assert (contents[content_key(b)].asked, contents[content_key(b)].billed) == (2, 1)
    assert contents[content_key(b)].idempotency_keys == ["k3", "k4"]
    assert seen["contents"][content_key(b)]["question"] == "b"
    assert (seen["requests"], seen["admitted"], seen["billed"]) == (4, 3, 3)
    assert seen["rejected"] == {"requests": 1}
    used = [g.body["usage"] for g in got if g.status == 200]
    assert seen["prompt_tokens"] == sum(u["prompt_tokens"] for u in used)
    assert seen["completion_tokens"] == sum(u["completion_tokens"] for u in used)
    assert sum(seen["admissions"].values()) == 3
    assert seen["first_admission"] <= seen["last_admission"] <= time.monotonic()
    assert seen["max_in_flight"] == 1


async def test_what_was_billed_survives_the_kill_of_the_provider(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"p_reset_after": 0.3, "refuse_params": ["stop"]}')
    flags = ["--config", str(tmp_path / "config.json"), "--counts", str(tmp_path / "counts")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.provider", *flags, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        url = line.removeprefix("listening on ").strip()
        tried = await asyncio.gather(*(post(session, url, f"{n}") for n in range(40)))
        async with session.get(url.removesuffix("/v1") + "/counts") as response:
            seen = await response.json()
    finally:
        process.kill()
        await process.wait()
    lines = [orjson.loads(line) for line in (tmp_path / "counts").read_bytes().splitlines()]
    assert len(lines) == seen["billed"] == 40
    assert 5 < tried.count(0) == seen["faults"]["reset_after"] < 20
    assert {line["content"] for line in lines} == {content_key(question(f"{n}")) for n in range(40)}


async def post(session: aiohttp.ClientSession, url: str, text: str) -> int:
    """The status, 0 for a lost connection."""
    try:
        async with session.post(url + "/chat/completions", json=question(text)) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return 0


async def test_it_may_stop_and_come_back_at_the_same_port(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    p = Provider(counts_file=tmp_path / "counts")
    async with p.running():
        await Asker(session, p)("a")
        port = int(p.root_url.rsplit(":", 1)[1])
    async with p.running(port):
        await Asker(session, p)("b")
    assert p.counts.billed == len((tmp_path / "counts").read_bytes().splitlines()) == 2
