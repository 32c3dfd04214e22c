"""What a user would write or pick instead; each answers a pool and prints answers a second.

python bench/peers.py bare|openai POOL BASE_URL IN_FLIGHT
python bench/peers.py curator POOL BASE_URL IN_FLIGHT        (needs bespokelabs-curator)
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MODEL = "gpt-4o"


def messages(pool: Path) -> list[list[dict[str, str]]]:
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    return [[{"role": "user", "content": row["instruction"]}] for row in rows]


async def bare(asked: list[list[dict[str, str]]], base_url: str, in_flight: int) -> None:
    """The barest loop: no storage, no limits, no counts, no retries."""
    import aiohttp
    import orjson

    todo = iter(asked)
    url = f"{base_url}/chat/completions"

    async def worker(session: aiohttp.ClientSession, todo: Iterator[list[dict[str, str]]]) -> None:
        for one in todo:
            body = orjson.dumps({"model": MODEL, "messages": one, "max_tokens": 512})
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as reply:
                orjson.loads(await reply.read())["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:
        await asyncio.gather(*(worker(session, todo) for _ in range(in_flight)))


async def openai_sdk(asked: list[list[dict[str, str]]], base_url: str, in_flight: int) -> None:
    """The openai package with its aiohttp backend and a semaphore."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    semaphore = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(api_key="none", base_url=base_url, http_client=DefaultAioHttpClient()) as client:

        async def ask(one: list[dict[str, str]]) -> None:
            async with semaphore:
                reply = await client.chat.completions.create(
                    model=MODEL,
                    messages=one,  # type: ignore[arg-type]
                    max_tokens=512,
                )
                assert reply.choices[0].message.content

        await asyncio.gather(*(ask(one) for one in asked))


def curator(asked: list[list[dict[str, str]]], base_url: str, in_flight: int) -> None:
    """bespokelabs-curator with its OpenAI backend and every limit out of the way."""
    import tempfile

    os.environ.update(
        OPENAI_API_KEY="none", CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="false",
        HF_HUB_OFFLINE="1", CURATOR_CACHE_DIR=tempfile.mkdtemp(),
    )  # fmt: skip
    from bespokelabs import curator as package

    class Ask(package.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["instruction"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            return {"instruction": row["instruction"], "output": response}

    params = {
        "base_url": base_url,
        "max_requests_per_minute": 10_000_000,
        "max_tokens_per_minute": 10_000_000_000,
        "max_concurrent_requests": in_flight,
    }
    llm = Ask(
        model_name=MODEL,
        backend="openai",
        backend_params=params,
        generation_params={"max_tokens": 512},
    )
    llm([{"instruction": one[0]["content"]} for one in asked])


def main() -> None:
    peer, pool, base_url, in_flight = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    asked = messages(pool)
    started = time.perf_counter()
    if peer == "curator":
        curator(asked, base_url, in_flight)
    else:
        import uvloop

        run = bare if peer == "bare" else openai_sdk
        started = time.perf_counter()
        uvloop.run(run(asked, base_url, in_flight))
    print(f"RATE {len(asked) / (time.perf_counter() - started):.1f}")


if __name__ == "__main__":
    main()
