"""What a run folder holds beside the ledger's sums, evaluated here and now: judgements, votes, verbs.

The same functions as the commands', so that the numbers are the same. What would be too much to read in a
report, or needs what is not installed, is left out with a word on how to have it.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from evaluators.report.inputs import NOT_THERE, Evaluation, Inputs, StageInput
from evaluators.report.queries import drawn
from store.errors import DistillError
from store.votes_schema import VOTES

MOST_JUDGED = 20_000  # replies, which are read whole
PARSED, STAGES = 1000, 2  # answers whose verbs are looked for, and of how many stages
FEWEST = 100  # answers, below which verbs are chance
LETTERS = 0.8  # of the characters: below, a text is hardly English


def evaluate(found: Inputs) -> None:
    """Puts what the folder itself can tell before the evaluations that lie in files."""
    own: list[Evaluation] = []
    for one in (_judged, _voted, _verbs):
        try:
            own.extend(one(found))
        except (DistillError, *NOT_THERE) as error:
            found.unread.append((one.__name__.lstrip("_"), f"could not be told: {error}"))
    found.evaluations[:0] = own


def _judged(found: Inputs) -> Iterator[Evaluation]:
    names = []
    for stage in found.of_task("judge", "compare"):
        if stage.counts["done"] <= MOST_JUDGED:
            names.append(stage.name)
        else:
            why = (
                f"over {MOST_JUDGED:,} judgements; sum it up with `evaluate judge --json`, and name the file"
            )
            found.unread.append((f"judgements of {stage.name}", why))
    if names:
        from evaluators.judge.metrics import judge_report
        from evaluators.judge.reviews import read_run

        told = judge_report(read_run(found.run, names))
        yield Evaluation("this run's judgements: " + ", ".join(names), "judge", told)


def has_votes(run: Path) -> bool:
    return any(_with_votes(run))


def _with_votes(run: Path) -> Iterator[Path]:
    """The folder and those in it, as far as people have voted there."""
    folders = sorted(folder for folder in run.iterdir() if folder.is_dir()) if run.is_dir() else []
    yield from (folder for folder in (run, *folders) if (folder / VOTES).is_file())


def _voted(found: Inputs) -> Iterator[Evaluation]:
    for folder in _with_votes(found.run):
        from evaluators.human import figures

        yield Evaluation(_name(found.run, folder), "human", figures(folder))


def _name(run: Path, folder: Path) -> str:
    return "this run's votes" if folder == run else f"votes in {folder.name}"


def _verbs(found: Inputs) -> Iterator[Evaluation]:
    """Of answers that were drawn; the paper's figure is of all."""
    from evaluators.data.verbs import MODEL

    stages = [stage for stage in found.of_task("generate") if stage.counts["done"] >= FEWEST]
    stages = sorted(stages, key=lambda s: -s.counts["done"])[:STAGES]
    if stages and find_spec(MODEL) is None:
        why = "spaCy's English model is not installed; `distill evaluate verbs` says how to get it"
        found.unread.append(("Verbs and their nouns", why))
        return
    data = {stage.name: told for stage in stages if (told := _verbs_of(found, stage))}
    if data:
        yield Evaluation("this run's answers", "verbs", {"field": "output", "data": data})


def _verbs_of(found: Inputs, stage: StageInput) -> dict[str, object] | None:
    from evaluators.data.verbs import Verbs, load_parser, parsed
    from evaluators.records import Record

    answers = drawn(found, stage, PARSED, "verbs")
    rows = [Record(str(a.position), a.position, "", "", a.text) for a in answers if _is_english(a.text)]
    if len(rows) * 2 < len(answers):
        return None
    told = Verbs()
    for row, pair in parsed(load_parser(), rows, "output", told):
        told.add(pair, row)
    return {"rows": len(rows), "bad_rows": 0, **told.as_json()}


def _is_english(text: str) -> bool:
    """Roughly: in Latin letters."""
    return sum(c.isascii() for c in text) >= LETTERS * len(text)
