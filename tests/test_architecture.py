"""Imports go one way, in no circle, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "store": {"store"},
    "engine": {"engine", "store"},
    "trainers": {"trainers", "store"},
    "evaluators": {"evaluators", "engine", "store"},
}
THE_COMMAND_LINE = {"engine.cli.app", "trainers.cli", "evaluators.cli"}  # may use all
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "datasets", "ray", "matplotlib", "xllamacpp")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
}


def imported(module: str) -> Iterator[str]:
    """All that a module imports, wherever in it; `import_module` cannot be seen and is not used."""
    for node in ast.walk(ast.parse(MODULES[module].read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def ours(module: str) -> set[str]:
    return {name for name in imported(module) if name.split(".")[0] in MAY_IMPORT}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        f"{module} imports {name}"
        for module in MODULES
        if module.split(".")[0] == package and module not in THE_COMMAND_LINE
        for name in ours(module)
        if name.split(".")[0] not in MAY_IMPORT[package]
    }
    assert not wrong


def test_the_test_sees_the_imports() -> None:
    """It must not pass because it looked at nothing."""
    assert {"store.ledger", "engine.collect.runner", "engine.tasks.generate"} <= set(MODULES)
    assert "store.ledger" in ours("engine.collect.stage")
    assert "engine.collect.settings" in ours("engine.cli.ask")  # inside a function


# Floors of engine/: a module imports only from its own package and from floors below.
FLOORS = (
    {"cli"},
    {"run_calls"},
    {"library"},
    {"recipe"},
    {"run"},
    {"batch", "export", "check"},
    {"answers"},
    {"collect"},
    {"serve", "browse", "limits", "environment"},
    {"provider", "tasks"},
    {"terminal"},
    {"subprocesses"},
)


def test_a_part_of_the_engine_imports_only_what_lies_below_it() -> None:
    floor = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    upward = {
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("engine.") and module != "engine.__main__"
        for name in ours(module)
        if name.startswith("engine.") and part_of(name) != part_of(module)
        if floor[part_of(name)] <= floor[part_of(module)]
    }
    assert not upward


def part_of(module: str) -> str:
    return module.split(".")[1]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for name in sorted(graph.get(module, ())):
            if found := visit(name, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({module: ours(module) for module in MODULES}) == []


def test_the_store_needs_no_more_than_its_few_libraries() -> None:
    allowed = {"orjson", "sqlite_utils", "pyarrow"}
    for module in MODULES:
        if module.startswith("store"):
            foreign = {name.split(".")[0] for name in imported(module)} - set(sys.stdlib_module_names)
            assert foreign <= allowed | {"store"}, module


def test_trainers_know_no_event_loop() -> None:
    assert not [m for m in MODULES if m.startswith("trainers") and "asyncio" in set(imported(m))]


def test_only_the_command_line_reads_the_environment() -> None:
    """Settings are values passed in. (`serve` may ask for the model's own log, to find faults in it.)"""
    doors = {"engine.cli.app", "engine.environment", "engine.serve.command", "trainers.cli"}
    readers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers <= doors


@pytest.fixture
def heavy(tmp_path: Path) -> dict[str, str]:
    """An environment in which the heavy libraries are there and end the process when imported."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(
            f"import os\nos.write(2, b'{name} was imported')\nos._exit(99)\n"
        )
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_trap_for_heavy_imports_works(heavy: dict[str, str]) -> None:
    ended = run(heavy, "-P", "-c", "import torch")
    assert (ended.returncode, ended.stderr) == (99, "torch was imported")


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "-c",
            "import distill, engine, engine.cli.app, engine.run.session, engine.run.unanswered, "
            "engine.run.collect, engine.run.status",
        ),
        ("-m", "engine", "--help"),
        ("-m", "engine", "generate", "--help"),
        ("-m", "engine", "status", "/nonexistent"),
    ],
    ids=["import", "--help", "generate --help", "status"],
)
def test_asking_a_teacher_needs_no_torch(heavy: dict[str, str], arguments: tuple[str, ...]) -> None:
    ended = run(heavy, "-P", *arguments)
    assert "was imported" not in ended.stderr
    assert ended.returncode == (2 if "status" in arguments else 0), ended.stderr


def test_help_loads_nothing_that_it_does_not_need(heavy: dict[str, str]) -> None:
    """Half of a second is what people wait without noticing."""
    program = (
        "import sys, runpy\n"
        "sys.argv = ['distill', '--help']\n"
        "try: runpy.run_module('engine', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "slow = {'aiohttp', 'pyarrow', 'tiktoken', 'genai_prices', 'rich', 'uvloop'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    ended = run(heavy, "-P", "-c", program)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr
