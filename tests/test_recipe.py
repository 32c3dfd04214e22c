"""A recipe is checked before a cent is spent: every complaint names the file and the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.recipe.load import load
from engine.recipe.schema import line_numbers
from store.errors import UsageError

GOOD = """\
budget = 5.0  # line 1

[teacher.t]
model = "gpt-4"
rpm = 10

[stage.a]
task = "generate"  # line 8
teacher = "t"
pool = "pool.jsonl"

[stage.b]
task = "generate"  # line 13
teacher = "t"
from = "a"

[stage.s]
task = "score"  # line 18
teacher = "t"
answers = [
  "a",
  "b",  # line 22
]

[stage.j]
task = "judge"  # line 26
teacher = "t"
answers = "a"
against = "b"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Hello."}\n')
    (tmp_path / "other.jsonl").write_text('{"instruction": "Hello."}\n')
    return tmp_path


def complaint(folder: Path, text: str) -> tuple[int | None, str]:
    """(line, words) of what is wrong with a recipe."""
    file = folder / "recipe.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as found:
        load(file)
    told = str(found.value)
    assert told.startswith(str(file)), told
    line = re.search(r"line (\d+)", told)
    return (int(line[1]) if line else None), told


def test_a_good_recipe_is_read_in_the_order_in_which_stages_follow_each_other(folder: Path) -> None:
    (folder / "recipe.toml").write_text(GOOD)
    recipe = load(folder / "recipe.toml")
    order = recipe.order
    assert sorted(order) == ["a", "b", "j", "s"]
    assert order.index("a") < order.index("b") < min(order.index("s"), order.index("j"))
    assert recipe.upstream("s") == ("a", "b")


CHANGES = {
    "a name that nobody knows": ('model = "gpt-4"', 'modell = "gpt-4"', 4, "modell"),
    "a table that nobody knows": ("[stage.a]", "[stages.a]", 7, "stages"),
    "a number that is none": ("rpm = 10", 'rpm = "ten"', 5, "teacher.t.rpm"),
    "a limit of zero": ("rpm = 10", "rpm = 0", 5, "teacher.t.rpm"),
    "a task that nobody knows": ('"generate"  # line 8', '"answer"', 8, "task"),
    "a teacher that is not there": ('teacher = "t"\npool', 'teacher = "u"\npool', 9, "no teacher 'u'"),
    "a stage that is not there": ('from = "a"', 'from = "x"', 15, "there is no stage 'x'"),
    "a file that is not there": ('"pool.jsonl"', '"pol.jsonl"', 10, "there is no file"),
    "standard input": ('"pool.jsonl"', '"-"', 10, "standard input"),
    "neither pool nor stage": ('from = "a"\n', "", 12, "generate needs pool"),
    "both a pool and a stage": ('from = "a"', 'from = "a"\npool = "pool.jsonl"', 12, "one of them"),
    "no task": ('task = "score"  # line 18\n', "", 17, "it is required"),
    "a circle": ('pool = "pool.jsonl"', 'from = "b"', 7, "cycle"),
    "a stage that follows itself": ('from = "a"', 'from = "b"', 12, "cycle: b -> b"),
    "answers of a model that is not there": ('"b",  # line 22', '"c",', 20, "no stage has this name"),
    "one model to score": ('  "b",  # line 22\n', "", 17, "two models or more"),
    "answers of no sensible type": ('answers = "a"', "answers = 3", 28, "answers: expected the name"),
    "no opponent": ('against = "b"\n', "", 25, "against"),
    "an opponent that is not there": ('against = "b"', 'against = "nobody.jsonl"', 29, "no stage has"),
    "a pool for a judge": ('against = "b"', 'against = "b"\npool = "pool.jsonl"', 30, "reads models"),
    "too few names": ('against = "b"', 'against = "b"\nnames = ["one"]', 30, "1 names for 2 models"),
    "questions for stages": ('against = "b"', 'against = "b"\nquestions = "pool.jsonl"', 30, "their own"),
    "answers from verdicts": ('from = "a"', 'from = "s"', 15, "gives verdicts, not answers"),
    "verdicts on verdicts": ('against = "b"', 'against = "s"', 29, "gives verdicts, not answers"),
    "both orders of scores": ('task = "score"', 'both_orders = true\ntask = "score"', 18, "(only to judge)"),
    "a prompt that nobody heeds": ('task = "score"', 'prompt = "pool.jsonl"\ntask = "score"', 18, "apply"),
    "a sample of a stage": ('from = "a"', 'from = "a"\nsample = 3', 16, "only a pool can be sampled"),
    "two pools": ('from = "a"', 'pool = "other.jsonl"', 20, "do not use the same rows"),
    "a name with a space": ("[stage.j]", '[stage."j j"]', 25, "letters, digits"),
    "a budget below zero": ("budget = 5.0", "budget = -5.0", 1, "budget"),
    "no TOML": ("[stage.j]", "[stage.j", 25, "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_mistake_is_told_with_its_line(folder: Path, what: str) -> None:
    before, instead, line, words = CHANGES[what]
    assert GOOD.count(before) >= 1
    at, told = complaint(folder, GOOD.replace(before, instead, 1))
    assert words in told
    assert at == line, told


def test_a_recipe_without_stages_is_refused(folder: Path) -> None:
    assert "stage" in complaint(folder, '[teacher.t]\nmodel = "gpt-4"\n')[1]
    assert "no stage" in complaint(folder, '[teacher.t]\nmodel = "gpt-4"\n[stage]\n')[1]


@pytest.mark.parametrize("name", ["file", "lines"])
def test_what_the_program_keeps_with_a_recipe_cannot_be_given(folder: Path, name: str) -> None:
    assert complaint(folder, f'{name} = "x"\n{GOOD}')[0] == 1


def test_a_recipe_that_is_no_text_or_not_there_is_refused(folder: Path) -> None:
    (folder / "recipe.toml").write_bytes(b"\xff\xfe")
    for name in ("recipe.toml", "nowhere.toml"):
        with pytest.raises(UsageError, match=name):
            load(folder / name)


def test_the_entry_of_a_list_of_servers_is_named(folder: Path) -> None:
    text = '[[teacher.t.endpoint]]\nrpm = 1\n\n[[teacher.t.endpoint]]\nrpm = "x"\n' + GOOD.partition("\n")[2]
    assert complaint(folder, text.replace("[teacher.t]\n", "[teacher.t]\n"))[0] == 5


def test_the_same_pool_by_another_path_is_the_same(folder: Path) -> None:
    text = GOOD.replace('from = "a"', f'pool = "../{folder.name}/pool.jsonl"')
    (folder / "recipe.toml").write_text(text)
    assert load(folder / "recipe.toml").upstream("s") == ("a", "b")


HARD = '''\
"a.b" = 1
'c d' = 2
e . "f g" = 3 # "[no.header]"
text = """
[not.a.table]
not_a_key = 1
\\"""still inside""" # """
literal = \'\'\'
[neither]
'\'\'
many = [
  # a comment with [ and """
  "x ] y", [
    "z",
  ],
]
inline = { x = 1, y = ["}"] }
[ tab . "le.x" ]
k = '#'
[[array.of]]
k = 1
[[array.of]]
k = 2
[array.of.sub]
k = 3
[[array.of.more]]
k = 4
'''


def test_lines_are_those_of_the_text() -> None:
    wanted = {
        ("a.b",): 1, ("c d",): 2, ("e", "f g"): 3, ("text",): 4, ("literal",): 8, ("many",): 11,
        ("inline",): 17, ("tab", "le.x"): 18, ("tab", "le.x", "k"): 19, ("array", "of", 0): 20,
        ("array", "of", 0, "k"): 21, ("array", "of", 1): 22, ("array", "of", 1, "k"): 23,
        ("array", "of", 1, "sub", "k"): 25, ("array", "of", 1, "more", 0, "k"): 27,
    }  # fmt: skip
    for text in (HARD, HARD.replace("\n", "\r\n")):
        found = line_numbers(text)
        assert {path: found.get(path) for path in wanted} == wanted
        assert ("not", "a", "table") not in found
        assert ("neither",) not in found


NOISE = st.sampled_from(
    [
        "", "   ", "# [x]", '# """', "#'''", "\t# a = 1", "filler{} = '[['", 'filler{} = "#\\""',
        'filler{} = """\n[y]\na = 1\n"""', "filler{} = '''\n\"\"\"\n'''",
        "filler{} = [\n[1, 2], # ]\n[3],\n]",
        "filler{} = {{ a = '}}' }}", 'filler{} = """a"""', "'fill er{}' = 1", '"fill.er{}" = "\u2028\x7f"',
        "filler{}.a = 1979-05-27T07:32:00Z", 'filler{} = """"quoted""""',
    ]
)  # fmt: skip
TARGETS = st.sampled_from([("key", "key"), ('"k.e y"', "k.e y"), ("'k\"'", 'k"'), ('"\\u006b"', "k")])


@given(st.lists(NOISE, max_size=6), st.lists(NOISE, max_size=6), TARGETS)
def test_a_key_is_found_whatever_stands_before_it(
    above: list[str], below: list[str], target: tuple[str, str]
) -> None:
    import tomllib

    written, name = target
    top = [line.replace("\x7f", "").format(n) for n, line in enumerate(above)]
    inner = [line.replace("\x7f", "").format(n) for n, line in enumerate(below)]
    text = "\n".join([*top, "[table]", *inner, f"{written} = 7", ""])
    assert tomllib.loads(text)["table"][name] == 7
    found = line_numbers(text)
    assert text.split("\n")[found["table",] - 1] == "[table]"
    assert text.split("\n")[found["table", name] - 1] == f"{written} = 7"
