"""Contracts that outlive every tidying: request keys, plans, names of settings, shapes of `--json`, the
ledger's tables and views. A change here makes paid answers pending again, or breaks what others have built.

`python tests/test_golden.py` writes the file anew; read the difference before it goes in.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.support.cli import asking, distill, export, ledger, write_pool
from tests.support.provider import Config, Provider

GOLDEN = Path(__file__).parent / "data" / "golden.json"
POOL = [
    {"id": "sum", "instruction": "Add the numbers.", "input": "2 and 3"},
    {"instruction": "Nenne drei Städte an der Elbe.", "category": "geography"},
]
ANSWERS = {
    "one": ["Five.", "Dresden, Magdeburg, Hamburg."],
    "two": ["2 + 3 = 5", "Dresden und Hamburg."],
}
PRICE = ("--price-in", 1, "--price-out", 2)


async def found(folder: Path) -> dict[str, Any]:
    """What a folder of every role holds and tells, less what chance and the clock decide."""
    run, pool = folder / "run", write_pool(folder / "pool.jsonl", POOL)
    sides = [
        write_pool(
            folder / f"{name}.jsonl",
            [{**row, "output": text} for row, text in zip(POOL, texts, strict=True)],
        )
        for name, texts in ANSWERS.items()
    ]
    prompt = folder / "prompt.txt"
    prompt.write_text("Kurz: {instruction}")
    async with Provider(Config(latency=0.01, latency_sigma=0)).running() as p:
        url = p.base_url
        judges = ["--base-url", url, "--model", "gpt-4", "--attempts-parse", 1, *PRICE]
        commands: dict[str, list[object]] = {
            "plain": asking(pool, run, url, "--stage", "plain", *PRICE),
            "sampled": asking(
                pool, run, url, "--stage", "sampled", "--samples", 2, "--temperature", 0.7, "--top-p", 0.9,
                "--max-tokens", 99, "--system", "Be brief.", "--param", "seed=7", *PRICE,
            ),
            "thinking": asking(
                pool, run, url, "--stage", "thinking", "--model", "gpt-5-mini", "--reasoning-effort", "low",
                *PRICE,
            ),
            "prompted": asking(pool, run, url, "--stage", "prompted", "--prompt", prompt, *PRICE),
            "translate": asking(pool, run, url, "--to", "German", *PRICE, command="translate"),
            "score": ["score", *sides, "--run", run, *judges],
            "compare": ["compare", "--answers", sides[0], "--against", sides[1], "--run", run, *judges],
            "judge": [
                "judge", "--answers", sides[0], "--against", sides[1], "--both-orders", "--run", run, *judges
            ],
        }  # fmt: skip
        for name, words in commands.items():
            ended = await distill(*words, "--yes")
            assert ended.code in (0, 1), f"{name}: {ended.err}"
        estimate = await distill(
            "estimate", pool, "--base-url", url, "--model", "gpt-4", "--rpm", 60, "--json", *PRICE
        )
    told = json.loads(estimate.out)
    status = await distill("status", run, "--json")
    return {
        "keys": {
            stage: sorted(
                {
                    key
                    for (key,) in ledger(
                        run,
                        "SELECT lower(hex(r.key)) FROM requests r JOIN samples a ON a.request = r.id "
                        "JOIN stages s ON s.id = a.stage WHERE s.name = ?",
                        stage,
                    )
                }
            )
            for (stage,) in ledger(run, "SELECT name FROM stages ORDER BY name")
        },
        "plans": dict(
            ledger(
                run,
                "SELECT DISTINCT s.name, cast(w.plan AS TEXT) FROM rows w "
                "JOIN stages s ON s.id = w.id >> 40 ORDER BY s.name",
            )
        ),
        "settings": sorted(
            {name for (text,) in ledger(run, "SELECT settings FROM runs") for name in json.loads(text)}
        ),
        "ledger": [
            list(row)
            for row in ledger(
                run,
                "SELECT m.type, m.name, group_concat(c.name) "
                "FROM sqlite_master m, pragma_table_info(m.name) c "
                "WHERE m.type IN ('table', 'view') GROUP BY m.name ORDER BY m.name",
            )
        ],
        "estimate": {name: told[name] for name in ("requests", "prompt_tokens", "cost_usd")},
        "shapes": {"estimate": shape(told), "status": shape(json.loads(status.out))},
        "export": {name: await export(run, "--stage", "plain", format=name) for name in ("alpaca", "chat")},
    }


def shape(value: Any, path: str = "") -> dict[str, str]:
    """Every key's path, with the type of what stands there; a number may be whole or not."""
    if isinstance(value, dict):
        return {k: v for name, x in value.items() for k, v in shape(x, f"{path}.{name}").items()} or {
            path: "{}"
        }
    if isinstance(value, list):
        return {k: v for x in value for k, v in shape(x, f"{path}[]").items()} or {path: "[]"}
    kinds = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}
    return {path: kinds[type(value)]}


async def test_contracts_that_others_have_built_on_stay_as_they_are(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    now = json.loads(json.dumps(await found(tmp_path)))
    for part, kept in golden.items():
        assert now[part] == kept, part


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        held = asyncio.run(found(Path(name)))
    GOLDEN.write_text(json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
