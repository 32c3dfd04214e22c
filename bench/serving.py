"""Serving: tokens a second of `distill serve DIR` beside transformers' generate, one prompt at a time.

    python bench/serving.py DIR [--prompts 16] [--tokens 64] [--rounds 3]

Same folder, prompts, precision and threads, greedy, each in a process of its own, by turns; medians of
rounds. An answer that ends early counts what it has.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TOPICS = ("the sea", "bread", "a bicycle", "tax", "moss", "glass", "the moon", "a bridge", "salt", "chess")


def prompts(count: int) -> list[list[dict[str, str]]]:
    """Of several lengths."""
    return [
        [
            {
                "role": "user",
                "content": f"Explain {TOPICS[n % 10]} to child number {n}." + " Be clear." * (n % 7),
            }
        ]
        for n in range(count)
    ]


@contextmanager
def served(folder: Path, parallel: int) -> Iterator[tuple[str, str]]:
    """(address, model)"""
    command = [sys.executable, "-P", "-m", "engine", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--parallel", str(parallel)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        line = server.stdout.readline()
        yield line.split(" at ")[1].split(" ")[0], line.rsplit(": ", 1)[1].rstrip(")\n")
    finally:
        server.terminate()
        server.wait()


async def asked(url: str, model: str, chats: list[Any], tokens: int) -> float:
    """Tokens a second of all at once."""
    timeout = aiohttp.ClientTimeout(total=None)

    async def one(client: aiohttp.ClientSession, chat: Any) -> int:
        body = {"model": model, "messages": chat, "max_tokens": tokens, "temperature": 0}
        async with client.post(f"{url}/chat/completions", json=body) as response:
            return int((await response.json())["usage"]["completion_tokens"])

    async with aiohttp.ClientSession(timeout=timeout) as client:
        began = time.monotonic()
        written = await asyncio.gather(*(one(client, chat) for chat in chats))
        return sum(written) / (time.monotonic() - began)


def one_by_one(student: Any, chats: list[Any], tokens: int) -> float:
    """Tokens a second of plain transformers."""
    written, began = 0, time.monotonic()
    for chat in chats:
        inputs = student.texts.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(student.device)
        out = student.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        written += out.shape[1] - inputs["input_ids"].shape[1]
    return written / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from engine.serve.model_loader import load

    chats, found = prompts(options.prompts), {"served": [], "one by one": []}  # type: dict[str, list[float]]
    with served(options.folder, options.prompts) as (url, model):
        student = load(options.folder, model)
        for _ in range(options.rounds):
            found["served"].append(asyncio.run(asked(url, model, chats, options.tokens)))
            found["one by one"].append(one_by_one(student, chats, options.tokens))
    base = statistics.median(found["one by one"])
    print(f"{student!r}; {options.prompts} prompts of up to {options.tokens} tokens")
    print(f"{'way':12} {'tokens/s':>9} {'ratio':>6}   rounds")
    for way, rounds in found.items():
        told = " ".join(f"{one:.1f}" for one in rounds)
        print(f"{way:12} {statistics.median(rounds):9.1f} {statistics.median(rounds) / base:6.2f}   {told}")


if __name__ == "__main__":
    main()
