"""A setting is declared once: its flag, its recipe key, its bounds and its help come from one field."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer.main
from pydantic import BaseModel

from engine import __version__
from engine.cli.app import COMMANDS, app
from engine.cli.app import PANELS as COMMAND_PANELS
from engine.cli.options import kind_of, usual
from engine.collect.build_settings import engine_fields, flag_of, settings_from
from engine.collect.setting_fields import ALL, DEFAULTS, FLAGGED, PANELS, POOLED, TASKS, declared
from engine.collect.settings import Settings
from engine.recipe.load import load
from engine.recipe.schema import EndpointTable, StageTable, TeacherTable
from store.errors import UsageError
from tests.support.cli import distill, environment, rows, write_pool
from tests.support.terminals import on_terminal
from trainers.config import RewardRecipe, SftRecipe, recipe_from

ROOT: Any = typer.main.get_command(app)
FIELDS = {name: (model, field) for model in FLAGGED for name, field in model.model_fields.items()}
NUMBERS = [name for name, (_, field) in FIELDS.items() if kind_of(field.annotation) in (int, float)]
WRONG = (
    "0",
    "-1",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "abc",
    "",
    "1,5",
    "9" * 30,
    "1" * 5000,
    "0x10",
    "¼",
)
TRAINED = {"data": "d", "model": "m", "out": "o"}


def flags(name: str) -> set[str]:
    return {flag for param in ROOT.commands[name].params for flag in param.opts}


@pytest.mark.parametrize("command", ALL)
def test_a_command_offers_the_settings_that_it_heeds_and_no_other(command: str) -> None:
    heeded = {flag_of(name, field) for name, field in engine_fields(command).items()}
    assert heeded <= flags(command)
    others = {flag_of(name, field) for name, (_, field) in FIELDS.items()} - heeded
    assert not others & flags(command)


def test_every_setting_of_a_run_that_users_decide_has_a_flag() -> None:
    found = {"task", "teacher", "others", "api_key", "proxy"}  # the command, the recipe, or the environment
    assert set(Settings.model_fields) - found <= set(FIELDS)
    assert all(declared(field)["commands"] for _, field in FIELDS.values())


def test_recipe_keys_and_flags_are_the_same_fields() -> None:
    for table in (StageTable, TeacherTable, EndpointTable):
        for name in table.model_fields.keys() & FIELDS.keys() - {"model"}:
            assert table.model_fields[name].description == FIELDS[name][1].description, name
            assert name in FIELDS[name][0].model_fields


def settings(**given: Any) -> Settings:
    return settings_from({"model": "m", **given}, "generate")


def complaint(check: Callable[[], Any]) -> str | None:
    """What is wrong, or None if nothing is."""
    try:
        found = check()
    except UsageError as error:
        return str(error)
    assert found is not None
    return None


def recipe_with(folder: Path, name: str, text: str) -> Callable[[], Any]:
    """Loads a recipe with one number, as it was typed."""
    tables = {
        "teacher.t": 'model = "m"\n',
        "stage.s": 'task = "generate"\nteacher = "t"\npool = "pool.jsonl"\n',
    }
    tables["stage.s" if name in StageTable.model_fields else "teacher.t"] += f"{name} = {text}\n"
    file = folder / "recipe.toml"
    file.write_text("".join(f"[{table}]\n{body}" for table, body in tables.items()))
    return lambda: load(file)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_flag_refuses_what_is_out_of_bounds_and_stores_what_is_not(name: str) -> None:
    told = {text: complaint(lambda: orjson.dumps(getattr(settings(**{name: text}), name))) for text in WRONG}  # noqa: B023
    for text, words in told.items():
        shown = (text if len(text) <= 60 else text[:59] + "…") or "''"
        assert words is None or words.startswith(f"{flag_of(name, FIELDS[name][1])} {shown}: must be "), words
    assert len([words for words in told.values() if words]) >= 8


@pytest.mark.parametrize("name", sorted({*NUMBERS} - {"metrics_port"}))
def test_a_recipes_key_refuses_what_the_flag_refuses(name: str, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", rows(1))
    for text in ("0", "-1", "-0.5", "nan", "inf", "-inf", "1e300", "9" * 15, "true", '"abc"', "[]"):
        words = complaint(recipe_with(tmp_path, name, text))
        if text[0] not in 't"[':
            assert (words is None) == (complaint(lambda: settings(**{name: text})) is None), text  # noqa: B023
        assert words is None or re.search(
            rf"recipe\.toml, line \d+: (stage\.s|teacher\.t)\.{name}: found .*: must be ", words
        )


@pytest.mark.parametrize("kind", [SftRecipe, RewardRecipe])
def test_training_settings_refuse_wrong_values_by_the_flags_name(kind: type[Any]) -> None:
    for name, field in kind.model_fields.items():
        if kind_of(field.annotation) not in (int, float):
            continue
        told = [complaint(lambda: recipe_from(kind, {**TRAINED, name: text}, None)) for text in WRONG]  # noqa: B023
        assert all(words is None or flag_of(name, field) in words or name in words for words in told)
        with pytest.raises(UsageError, match=f"{flag_of(name, field)} abc: must be a"):
            recipe_from(kind, {**TRAINED, name: "abc"}, None)


def test_choices_are_named_when_a_value_is_none_of_them() -> None:
    with pytest.raises(UsageError, match="--service-tier slow: must be 'flex' or 'priority'"):
        settings(service_tier="slow")
    with pytest.raises(UsageError, match="--schedule up: must be 'cosine', 'linear' or 'constant'"):
        recipe_from(SftRecipe, {**TRAINED, "schedule": "up"}, None)
    with pytest.raises(UsageError, match="--master x: must be HOST:PORT"):
        recipe_from(SftRecipe, {**TRAINED, "master": "x"}, None)


def test_a_second_server_has_the_limits_of_the_first_and_they_are_checked() -> None:
    urls = ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]
    found = settings(base_url=urls, rpm="5", price_in="1", price_out="2")
    assert [(server.base_url, server.rpm, server.price_out) for server in found.servers()] == [
        (url, 5.0, 2.0) for url in urls
    ]
    with pytest.raises(UsageError, match="--rpm 0: must be greater than 0"):
        settings(base_url=urls, rpm="0")


@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_said_is_the_tasks_default(task: str) -> None:
    found = settings_from({"model": "m"}, task)
    assert {name: getattr(found, name) for name in DEFAULTS[task]} == DEFAULTS[task]
    assert found.stage == found.task == task
    field = FIELDS["max_tokens"][1]
    assert usual("max_tokens", field, task) == str(DEFAULTS[task]["max_tokens"])
    assert usual("max_tokens", field, "estimate") == "512; 1024 for translate"


def test_a_command_that_asks_no_teacher_shows_its_own_defaults() -> None:
    overlap = ROOT.commands["evaluate"].commands["overlap"]
    (field,) = [param for param in overlap.params if param.name == "field"]
    assert field.help.endswith("[prompt]")


def headings(text: str) -> list[str]:
    return re.findall(r"(?m)^([A-Z][A-Za-z ]+):$", text)


@pytest.mark.parametrize("command", ALL)
async def test_help_in_a_pipe_is_plain_text_in_panels(command: str) -> None:
    ended = await distill(command, "--help")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.isascii() or set(ended.out) - set(map(chr, range(128))) <= {"…"}
    shown = [panel for panel in headings(ended.out) if panel in PANELS]
    assert shown == [
        p for p in PANELS if any(declared(f)["panel"] == p for f in engine_fields(command).values())
    ]
    for name, field in engine_fields(command).items():
        assert f"  {flag_of(name, field)}" in ended.out
        if default := usual(name, field, command):
            assert re.sub(r"\s+", "", f"[{default}]") in re.sub(r"\s+", "", ended.out)


async def test_the_list_of_commands_is_in_panels_and_cuts_no_text() -> None:
    out = (await distill("--help")).out
    assert [heading for heading in headings(out) if heading != "Options"] == [*COMMAND_PANELS]
    assert "..." not in out.partition("Options:")[2]


async def test_help_on_a_terminal_has_frames_and_brackets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**environment(), "TERM": "xterm", "COLUMNS": "100"}
    async with on_terminal("estimate", "--help", env=env) as command:
        assert await command.ended() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", command.shown.decode())
    assert [title for title in re.findall(r"─ ([A-Z][A-Za-z ]+) ─", shown) if title in PANELS] == [
        panel
        for panel in PANELS
        if panel in {declared(f)["panel"] for f in engine_fields("estimate").values()}
    ]
    assert "<bool>" not in shown
    assert "<str>" not in shown
    for text in ("[512; 1024 for translate]", "[the model's default]", "[300; 900 for flex]"):
        assert text in re.sub(r"[\s│]+", " ", shown)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("score", "a", "b", "--sample", "3"),
            "--sample does not apply to score (only to generate, translate",
        ),
        (("compare", "--prompt=p"), "--prompt does not apply to compare"),
        (("generate", "a", "--structured"), "--structured does not apply to generate"),
        (("estimate", "a", "--batch-grace", "3"), "--batch-grace does not apply to estimate"),
        (("import", "a", "--rpm", "3"), "--rpm does not apply to import"),
    ],
)
async def test_a_flag_of_other_commands_is_refused_with_their_names(
    words: tuple[str, ...], told: str
) -> None:
    ended = await distill(*words, "--run", "/nonexistent", "--model", "m")
    assert ended.code == 2
    assert told in ended.err


RUN_ALONE = ("status", "retry", "settle", "check", "browse", "export", "report")


@pytest.mark.parametrize("command", RUN_ALONE)
async def test_run_names_the_folder_and_its_place_alone_does_too(command: str, tmp_path: Path) -> None:
    own = {
        "export": ("--format", "alpaca", "--out", tmp_path / "o"),
        "report": ("--out", tmp_path / "o.html"),
    }
    for words in (("--run", tmp_path), (tmp_path,)):
        ended = await distill(command, *words, *own.get(command, ()))
        assert ended.code == 2
        assert f"no ledger in {tmp_path}" in ended.err
    for words, told in (((), "Missing option '--run'"), ((tmp_path, "more"), "unexpected extra argument")):
        ended = await distill(command, *words, *own.get(command, ()))
        assert ended.code == 2
        assert told in ended.err


async def completed(*words: str) -> list[str]:
    env = {
        **environment(),
        "_DISTILL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return (await distill(env=env)).out.split()


async def test_shells_complete_commands_flags_and_values() -> None:
    assert await completed("distill", "gene") == ["generate"]
    assert await completed("bin/distill", "score", "--sam") == ["--samples"]
    assert await completed("distill", "train", "sft", "--schedule", "") == ["cosine", "linear", "constant"]
    # Without this it looks for the shell that it was started by, and a test may have none.
    named = environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    script = await distill("--show-completion", "bash", env=named)
    assert script.code == 0
    assert "_DISTILL_COMPLETE=complete_bash $1" in script.out


def test_models_of_settings_are_not_built_before_they_check_something() -> None:
    """Help reads fields; building validators for all of them costs a tenth of a second."""
    for model in FLAGGED:
        assert issubclass(model, BaseModel)
        assert model.model_config["defer_build"]


def test_no_command_has_more_parameters_than_one_can_see() -> None:
    from engine.cli.ask import ASKING

    for command in ASKING.values():
        own = inspect.signature(command).parameters.keys() - FIELDS.keys()
        assert len(own) <= 10
    assert set(POOLED) < set(TASKS)


async def test_the_version_is_told() -> None:
    ended = await distill("--version")
    assert (ended.code, ended.out) == (0, f"distill {__version__}\n")


async def test_commands_are_listed_in_the_order_of_the_work() -> None:
    listed = re.findall(r"(?m)^  ([a-z]+) {2,}", (await distill("--help")).out)
    assert tuple(listed) == COMMANDS
    assert len(app.registered_commands) + len(app.registered_groups) == len(COMMANDS)
