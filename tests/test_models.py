"""A model's name means what its maker documents, and nothing that the model refuses is sent, in any role."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest

from engine.provider.models import EFFORTS, SAMPLING, Model, Wish, accepted, find_model, thinking_at, wish_in
from tests.support.cli import ROOT, Row, distill, generate, write_pool
from tests.support.recipe_files import FREE, run_recipe, write_recipe
from tests.support.scripted import scripted
from tests.support.strict import Strict

TABLE: dict[str, Any] = tomllib.loads(
    (ROOT / "engine" / "provider" / "model_table.toml").read_text(encoding="utf-8")
)
PAID = ("--price-in", 1, "--price-out", 1, "--yes")

# What a name means: (effort when none is asked for, or "-" where it does not think; which of temperature
# 0.2 and top_p 0.9 are sent; the name of the bound). Each row of the table decides at least one name.
BOTH, ONE, NONE = ("temperature", "top_p"), ("temperature",), ()
OLD, NEW = "max_tokens", "max_completion_tokens"
MEANT: dict[tuple[str, tuple[str, ...], str], str] = {
    ("-", BOTH, OLD): """
        gpt-4 gpt-4o-mini gpt-4.1 gpt-4-1-mini gpt-35-turbo gpt-3.5-turbo-0125 chatgpt-4o-latest
        llama-3.1-8b llama-3-3-70b-instruct smollm2 mistral-small-latest marco-o1 llama-o1 phi-4 foo3-mini
        claude-3-5-sonnet-20241022 claude-3-opus-20240229 claude-3-haiku gemini-2.0-flash gemini-1.5-pro
        deepseek-chat deepseek-v3.1 deepseek-v3-0324 grok-3 grok-4-fast-non-reasoning
        grok-4.20-0309-non-reasoning xai.grok-4-1-fast-non-reasoning kimi-k2 kimi-k2-0905-preview
        qwen2.5-7b-instruct qwen-plus Qwen3-30B-A3B-Instruct-2507 qwen3-coder-plus qwen3-max
        qwen/qwen3-235b-a22b-2507 qwen3-next-80b-a3b-instruct glm-4-9b-0414 glm-4-plus
        some-non-reasoning-model""",
    ("none", BOTH, OLD): """
        claude-sonnet-4-20250514 claude-opus-4-0 claude-4-sonnet claude-3-7-sonnet-latest
        anthropic/claude-3.7-sonnet databricks-claude-sonnet-4 anthropic/claude-sonnet-3.7
        gemini-2.5-flash-lite models/gemini-2.5-flash-lite-preview-09-2025""",
    ("none", ONE, OLD): """
        claude-opus-4-1 claude-opus-4-1-20250805 us.anthropic.claude-opus-4-1-20250805-v1:0
        anthropic/claude-opus-4.1 claude-sonnet-4-5@20250929 global.anthropic.claude-haiku-4-5-20251001-v1:0
        claude-4.5-sonnet claude-4-5-haiku claude-opus-4-5 vertex_ai/claude-opus-4-6 claude-4.6-sonnet
        prod-opus-4-1""",
    ("none", NONE, OLD): """
        claude-opus-4-7 claude-opus-4-8-20260601 claude-opus4-7 anthropic--claude-4.7-opus claude-sonnet-5
        anthropic/claude-opus-5.1 duo-chat-opus-4-7 ~anthropic/claude-opus-latest claude-haiku-5""",
    ("high", NONE, OLD): "claude-fable-5 eu.anthropic.claude-mythos-5 claude-mythos-preview",
    ("medium", NONE, OLD): """
        anthropic/claude-3.7-sonnet:thinking claude-sonnet-4-5-20250929-thinking kimi-k2.5
        moonshotai/Kimi-K2.6-Instruct kimi-k2-5 kimi-k3 kimi-for-coding""",
    ("-", BOTH, NEW): "gpt-5-chat-latest openai/gpt-5-chat azure/gpt-5-chat",
    ("none", BOTH, NEW): """
        gpt-5.1 gpt-5.1-2025-11-13 openai/gpt-5.1 gpt-5-1 databricks-gpt-5-1 gpt-51 GPT_5.1 gpt-5.2
        openai-gpt-52 gpt-5.2-2025-12-11 gpt-5.4-mini duo-chat-gpt-5-4-nano""",
    ("medium", NONE, NEW): """
        gpt-5 gpt-5-mini openai/gpt-5-mini azure/gpt-5-nano-2025-08-07 gpt5-prod my_gpt_5_mini prod-gpt-5
        ft:gpt-5-mini:org::x openrouter/openai/gpt-5-mini:online gpt-5-thinking gpt-5-2025-08-07
        gpt-5.1-chat-latest gpt-5.2-chat gpt-5-codex gpt-5.1-codex-mini openai/gpt-5.1-codex
        gpt-5.1-codex-max gpt-5.2-codex openai-gpt-53-codex gpt-5.5 gpt-55 gpt-5.6-sol gpt-6 gpt-6.1-mini
        o1 o1-2024-12-17 o1-mini o1-preview o1-pro o3 openai/o3 openai-o3 o3-2025-04-16 o3-mini my-o3-mini
        o4-mini azure-o1 o3-pro o3-deep-research o4-mini-deep-research""",
    ("high", NONE, NEW): "gpt-5-pro gpt-5-pro-2025-10-06 gpt-5.2-pro openai/gpt-5.5-pro openai/o4-mini-high",
    ("minimal", BOTH, OLD): "gemini-3.1-flash-lite-preview gemini-3.5-flash-lite gemini-flash-lite-latest",
    ("low", BOTH, OLD): "x-ai/grok-3-mini grok-3-mini-fast",
    ("medium", BOTH, OLD): """
        gemini-2.5-pro gemini-2-5-pro google/gemini-2.5-flash models/gemini-2.5-flash-preview-05-20
        gemini-3.5-flash grok-4 grok-4-0709 grok-4-fast-reasoning grok-4.1-fast grok-4.20-0309-reasoning
        grok-code-fast-1 grok-4.3 qwen3-8b Qwen/Qwen3-8B qwen3:8b qwen-3-32b qwen3.5-plus qwq-32b qvq-max
        Qwen3-235B-A22B-Thinking-2507 qwen3-max-thinking qwen3-vl-8b-thinking gpt-oss-20b
        openai/gpt-oss-120b gpt-oss:20b glm-4.6 zai-org/GLM-4.5-Air glm-4.5v glm-5.1 glm-5v-turbo
        moonshotai/kimi-k2-thinking magistral-medium-2509 MiniMax-M2.1 nvidia/nemotron-3-nano-30b-a3b
        HuggingFaceTB/SmolLM3-3B seed-oss-36b bytedance-seed/seed-1.6 doubao-seed-1-6-250615 step-3
        microsoft/phi-4-reasoning-plus sonar-reasoning-pro allenai/Olmo-3-7B-Think sonar-deep-research
        baidu/ERNIE-4.5-21B-A3B-Thinking command-a-reasoning-08-2025""",
    ("high", BOTH, OLD): """
        gemini-3-pro-preview gemini-3.1-pro-preview gemini-3-flash-preview deepseek-reasoner
        deepseek-ai/DeepSeek-R1 deepseek-r1:14b DeepSeek-R1-Distill-Qwen-32B deepseek-v4-flash
        deepseek-ai/DeepSeek-V4-Pro perplexity/r1-1776 grok-4.5 grok-5""",
}  # fmt: skip
NAMES = [(name, meant) for meant, names in MEANT.items() for name in names.split()]


@pytest.mark.parametrize(("name", "meant"), NAMES, ids=[name for name, _ in NAMES])
def test_a_name_means_what_its_maker_documents(name: str, meant: tuple[str, tuple[str, ...], str]) -> None:
    model = find_model(name)
    sent = accepted(model, model.effort, {"temperature": 0.2, "top_p": 0.9})
    assert (model.effort if model.thinks else "-", tuple(sent), model.bound) == meant


def test_every_row_has_a_source_and_a_date_and_holds_together() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    for entry in TABLE["model"]:
        assert len(entry["source"]) > 10, entry
        assert datetime.date(2026, 1, 1) <= entry["date"] <= max(today, datetime.date(2026, 11, 28)), entry
        efforts = entry.get("efforts", [])
        assert set(efforts) <= set(EFFORTS), entry
        assert not efforts or entry["effort"] in efforts, entry
        assert entry.get("thinks", False) or not efforts, entry
        for refused in ("refuses", "always_refuses", "one_of"):
            assert set(entry.get(refused, [])) <= set(SAMPLING), entry


def test_every_row_decides_a_name_of_this_test() -> None:
    """Else a row before it hides it, or nobody checks it."""
    decided = {find_model(name).pattern for name, _ in NAMES}
    assert [e["pattern"] for e in TABLE["model"] if e["pattern"] not in decided] == []


def test_more_effort_is_more_room() -> None:
    rooms = [thinking_at(effort) for effort in EFFORTS]
    assert [(t.room, t.median) for t in rooms] == sorted((t.room, t.median) for t in rooms)
    assert rooms[0].room == 0
    assert all(t.room > 8 * t.median for t in rooms[1:])  # two sigmas of the log-normal above its median


@pytest.mark.parametrize("prefix", ["", "openai/", "azure/", "us.", "my-", "team_a/prod_", "OpenRouter/x-y/"])
@pytest.mark.parametrize("suffix", ["", "-2027-01-31", ":free", "@latest", "-prod", "_eu", "/v2", " "])
def test_what_stands_around_a_name_changes_nothing(prefix: str, suffix: str) -> None:
    for name in ("gpt-5-mini", "claude-opus-4-1", "gemini-2.5-pro", "qwen3-8b"):
        assert find_model(prefix + name + suffix) == find_model(name), prefix + name + suffix


def test_a_kind_overrules_the_table() -> None:
    assert find_model("gpt-5-mini", "plain") == Model()
    generic = find_model("our-own-model", "reasoning")
    assert (generic.thinks, generic.bound) == (True, "max_completion_tokens")
    assert accepted(generic, "medium", {"temperature": 0.2, "top_p": 1}) == {}
    assert find_model("gpt-5-mini", "reasoning") == find_model("gpt-5-mini")


@pytest.mark.parametrize(
    ("params", "wish"),
    [
        ({}, Wish()),
        ({"reasoning_effort": "low"}, Wish("low")),
        ({"reasoning_effort": None}, Wish()),
        ({"reasoning": {"effort": "high"}}, Wish("high")),
        ({"reasoning": {"enabled": True}}, Wish("on")),
        ({"reasoning": {"enabled": False}}, Wish("none")),
        ({"reasoning": {"max_tokens": 2000}}, Wish("on", 2000)),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000}}, Wish("on", 32000)),
        ({"thinking": {"type": "disabled"}}, Wish("none")),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, Wish("max")),
        ({"enable_thinking": False}, Wish("none")),
        ({"enable_thinking": True, "thinking_budget": 4000}, Wish("on", 4000)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Wish("none")),
        ({"chat_template_kwargs": {"thinking": True}}, Wish("on")),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, Wish("low")),
        ({"think": False}, Wish("none")),
        ({"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}, Wish("none")),
        ({"extra_body": {"google": {"thinking_config": {"thinking_level": "low"}}}}, Wish("low")),
        ({"reasoning": 3, "thinking": [1], "chat_template_kwargs": "x", "extra_body": None}, Wish()),
    ],
)
def test_thinking_is_asked_for_in_any_server_s_words(params: dict[str, Any], wish: Wish) -> None:
    assert wish_in(params) == wish


# What is sent: every role, by one recipe, to a server that refuses what the real models refuse.

ANSWER = {"generate": 512, "translate": 1024, "score": 512, "judge": 1024, "compare": 512}
ROOM = {"medium": 16384, "high": 32768}
TEACHERS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...], int]] = {
    # name, what else the recipe says, bound, sampling that is sent (of 1.0 or 0.2, and top_p 1), room
    "plain": ("gpt-4", {}, OLD, ("temperature", "top_p"), 0),
    "mini": ("gpt-5-mini", {}, NEW, (), ROOM["medium"]),
    "prefixed": ("openai/gpt-5-mini", {}, NEW, (), ROOM["medium"]),
    "quiet": ("gpt-5.1", {}, NEW, ("temperature unless 1",), 0),
    "thinking": ("gpt-5.1", {"reasoning_effort": "high"}, NEW, (), ROOM["high"]),
    "o3": ("o3", {}, NEW, (), ROOM["medium"]),
    "one": ("claude-opus-4-1", {}, OLD, ("temperature",), 0),
    "neither": ("claude-opus-4-7", {}, OLD, (), 0),
    "google": ("gemini-2.5-pro", {}, OLD, ("temperature", "top_p"), ROOM["medium"]),
    "kimi": ("kimi-k2.5", {}, OLD, (), ROOM["medium"]),
    "qwen": ("qwen3-8b", {}, OLD, ("temperature", "top_p"), ROOM["medium"]),
}


def wanted(teacher: str, task: str) -> dict[str, Any]:
    _, said, bound, sampling, room = TEACHERS[teacher]
    temperature = 1.0 if task == "generate" else 0.2
    sent = {"temperature": temperature} if "temperature" in sampling else {}
    sent |= {"temperature": 0.2} if "temperature unless 1" in sampling and temperature != 1 else {}
    sent |= {"top_p": 1.0} if "top_p" in sampling else {}
    effort = {"reasoning_effort": said["reasoning_effort"]} if "reasoning_effort" in said else {}
    return {**sent, bound: ANSWER[task] + room, **effort}


def answers(folder: Path, name: str, pool: list[Row]) -> str:
    return str(write_pool(folder / f"{name}.jsonl", [row | {"output": f"Says {name}."} for row in pool]))


async def test_in_every_role_a_model_is_sent_what_it_takes(tmp_path: Path) -> None:
    """Each stage has a row of its own, so that a body tells by its words who asked, and in which role."""
    strict, stages = Strict(), {}
    tables: dict[str, dict[str, Any]] = {}
    async with scripted(strict.answer) as url:
        for name, (model, said, *_) in TEACHERS.items():
            tables[f"teacher.{name}"] = {"model": model, "base_url": url, **FREE, **said}
            for task in ANSWER:
                word = f"{name} {task}."
                row: Row = {"id": word, "instruction": f"Write about {word}"}
                stage: dict[str, Any] = {"task": task, "teacher": name}
                if task in ("generate", "translate"):
                    stage["pool"] = str(write_pool(tmp_path / f"{name}-{task}.jsonl", [row]))
                    stage |= {"to": "Chinese"} if task == "translate" else {}
                else:
                    one, two = (answers(tmp_path, f"{name}-{task}-{who}", [row]) for who in "ab")
                    stage |= {"answers": [one, two]} if task == "score" else {"answers": one, "against": two}
                tables[f"stage.{name}-{task}"] = stage
                stages[word] = (name, task)
        ended = await run_recipe(write_recipe(tmp_path, tables), tmp_path / "run")
    assert ended.code == 0, ended.err
    assert not strict.refused
    assert not strict.empty
    seen = set()
    for body in strict.bodies:
        text = body.pop("messages")[-1]["content"]
        word = next(word for word in stages if word in text)
        name, task = stages[word]
        assert body == {"model": TEACHERS[name][0], **wanted(name, task)}, word
        seen.add(word)
    assert seen == set(stages)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", [{"instruction": "Name a colour."}])


@pytest.mark.parametrize(
    ("model", "flags", "sent"),
    [
        ("gpt-5-mini", ("--reasoning-effort", "low"), {NEW: 512 + 8192, "reasoning_effort": "low"}),
        ("gpt-5-mini", ("--thinking-tokens", 3000), {NEW: 3512}),
        ("gpt-5-mini", ("--max-tokens", 100, "--thinking-tokens", 900), {NEW: 1000}),
        ("gpt-5-mini", ("--omit", NEW), {}),
        ("gpt-5-mini", ("--param", f"{NEW}=4000"), {NEW: 4000}),
        ("gpt-5.1", ("--temperature", 0.5), {NEW: 512, "temperature": 0.5}),
        ("gpt-5.1", ("--temperature", 0.5, "--omit", "temperature"), {NEW: 512}),
        ("gpt-5.1", ("--temperature", 0.5, "--reasoning-effort", "low"),
         {NEW: 512 + 8192, "reasoning_effort": "low"}),
        ("claude-opus-4-1", ("--top-p", 0.9), {OLD: 512, "top_p": 0.9}),
        ("gpt-4", ("--model-kind", "reasoning"), {NEW: 512 + 16384}),
        ("gpt-4", ("--omit", "top_p"), {OLD: 512, "temperature": 1.0}),
        ("qwen3-8b", ("--model-kind", "plain"), {OLD: 512, "temperature": 1.0, "top_p": 1.0}),
        ("qwen3-8b", ("--param", 'chat_template_kwargs={"enable_thinking":false}'),
         {OLD: 512, "temperature": 1.0, "top_p": 1.0, "chat_template_kwargs": {"enable_thinking": False}}),
        ("teacher", ("--param", 'reasoning={"max_tokens":5000}'),
         {OLD: 5512, "temperature": 1.0, "top_p": 1.0, "reasoning": {"max_tokens": 5000}}),
        ("teacher", ("--param", 'thinking={"type":"enabled","budget_tokens":9000}'),
         {OLD: 9512, "temperature": 1.0, "top_p": 1.0,
          "thinking": {"type": "enabled", "budget_tokens": 9000}}),
    ],
)  # fmt: skip
async def test_flags_overrule_the_table(
    tmp_path: Path, pool: Path, model: str, flags: tuple[object, ...], sent: dict[str, Any]
) -> None:
    strict = Strict()
    async with scripted(strict.lenient) as url:
        ended = await generate(tmp_path / "run", pool, url, "--model", model, *PAID, *flags)
    assert ended.code == 0, ended.err
    (body,) = strict.bodies
    del body["messages"]
    assert body == {"model": model, **sent}


@pytest.mark.parametrize(
    ("model", "effort", "allowed"),
    [
        ("gpt-5-mini", "none", "minimal, low, medium, high"),
        ("gpt-5-mini", "xhigh", "minimal, low, medium, high"),
        ("gpt-5.1", "minimal", "none, low, medium, high"),
        ("azure/gpt-5-pro", "low", "takes high"),
        ("o3", "minimal", "low, medium, high"),
        ("grok-4", "low", "takes no effort"),
        ("gpt-5.2-chat-latest", "none", "takes medium"),
    ],
)
async def test_an_effort_that_a_model_refuses_is_bad_usage(
    tmp_path: Path, pool: Path, model: str, effort: str, allowed: str
) -> None:
    strict = Strict()
    async with scripted(strict.answer) as url:
        ended = await generate(
            tmp_path / "run", pool, url, "--model", model, *PAID, "--reasoning-effort", effort
        )
    assert ended.code == 2
    assert allowed in ended.err
    assert f"--param reasoning_effort={effort}" in ended.err  # the way to send it all the same
    assert not strict.bodies


async def test_an_effort_that_a_model_refuses_is_bad_usage_in_estimates_and_recipes(
    tmp_path: Path, pool: Path
) -> None:
    flags = ("--model", "gpt-5-mini", "--reasoning-effort", "max")
    told = await distill("estimate", pool, *flags)
    assert told.code == 2
    assert "minimal, low, medium, high" in told.err
    tables = {
        "teacher.t": {"model": "gpt-5-mini", "base_url": "http://127.0.0.1:9/v1"},
        "stage.a": {"task": "generate", "teacher": "t", "pool": str(pool), "reasoning_effort": "max"},
    }
    ended = await run_recipe(write_recipe(tmp_path, tables), tmp_path / "run", "--yes")
    assert ended.code == 2
    assert "minimal, low, medium, high" in ended.err


async def test_an_effort_of_a_model_that_nobody_knows_is_sent(tmp_path: Path, pool: Path) -> None:
    strict = Strict()
    async with scripted(strict.lenient) as url:
        flags = ("--model", "teacher", *PAID, "--reasoning-effort", "high")
        ended = await generate(tmp_path / "run", pool, url, *flags)
    assert ended.code == 0, ended.err
    assert (strict.bodies[0]["reasoning_effort"], strict.bodies[0][OLD]) == ("high", 512 + 32768)
