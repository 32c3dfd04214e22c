"""Reads judgements: FastChat's reviews, ours, AlpacaEval's preferences, and what the judges of a run said.

FastChat (`question_id`, `text`, maybe `score`) names no models: the file is called X_vs_Y, and X was shown
first. Its scores may differ from its text, because published ones were corrected by hand. The caller
chooses which one counts, and the difference is reported. Our own files name the models.

AlpacaEval has two outputs and 1 or 2 for the better one (1.5, or once 0: a tie). `model_2` or `generator_2`
is the evaluated model, a here; the first is the reference, b. The order that the judge saw was random and
is not in the file.

Of a run, the stored raw replies are read here and now: a better reader than the one of the run costs nothing.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.answers import clean
from engine.collect.other_settings import Counting, counting
from engine.collect.plan import role
from engine.provider.responses import answer_of
from engine.tasks.datasets import by_file, verdict
from engine.tasks.parse_scores import two_scores
from engine.tasks.task import question
from engine.terminal import plain, tell
from evaluators.judge.judgements import Judgement, won
from store.answers import identity, model_names
from store.datasets import stored
from store.errors import Damages, PoolError, UsageError, words_of
from store.pool import Pool
from store.queries import connect_reader, stage_status, stages
from store.records import BadRow, Contest, columns_of

Word = Literal["file", "text"]
Scores = tuple[float, float]
_KIND = re.compile(r"-(?:generic|general|coding|math)\Z")  # which prompt a FastChat reviewer was given
UNREAD = [-1, -1]  # FastChat's score of a reply that it could not read
MOST = 1_000_000  # beyond it no judge's scale goes, and sums would lose their digits


@dataclass(frozen=True, slots=True)
class Difference:
    """A review whose scores in the file are not those of its text. text: None where it says none."""

    source: str
    line: int
    question: str
    file: Scores
    text: Scores | None


@dataclass(frozen=True)
class ReviewSource:
    """What a file, or a stage of a run, holds. unanswered: contests on which the judge has not
    said anything (yet)."""

    name: str
    judgements: Sequence[Judgement]
    bad: Sequence[BadRow] = ()
    differences: Sequence[Difference] = ()
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Naming:
    """What the user says of files that do not say it themselves."""

    a: str | None = None
    b: str | None = None
    judge: str | None = None


def read_reviews(path: Path, naming: Naming, word: Word) -> ReviewSource:
    """Raises PoolError where no line can be used, UsageError where nobody knows whose reviews they are."""
    judgements: list[Judgement] = []
    bad: list[BadRow] = []
    differences: list[Difference] = []
    columns = ""
    for line, row in Pool(path).objects():
        columns = columns or ("" if isinstance(row, BadRow) else f"; {columns_of(row)}")
        found = row if isinstance(row, BadRow) else _review(row, path, line, naming, word)
        if isinstance(found, BadRow):
            bad.append(found)
            continue
        said, difference = found
        judgements.append(said)
        differences += [difference] if difference else []
    if not judgements:
        why = f"line {bad[0].line}: {bad[0].reason}" if bad else "it is empty"
        raise PoolError(f"no usable review in {path}: {why}{columns}")
    return ReviewSource(stem(path), judgements, bad, differences)


def stem(path: Path) -> str:
    return model_names([path], None)[0]


def _review(
    row: dict[str, Any], path: Path, line: int, naming: Naming, word: Word
) -> tuple[Judgement, Difference | None] | BadRow:
    if reason := _fault(row):
        return BadRow(line, reason)
    text = row.get("text") or ""
    question, b_first = _question(row), row.get("order") == [1, 0]
    a, b = row.get("models") or models_of(path, naming)
    given, in_text = row.get("score"), two_scores(text)
    in_file = None if given in (None, UNREAD) else (float(given[0]), float(given[1]))
    if in_text and b_first:
        in_text = in_text[1], in_text[0]
    scores = in_text if word == "text" else in_file or in_text
    score_a, score_b = scores or (None, None)
    category, reviewer = row.get("category"), row.get("judge") or row.get("reviewer_id")
    judge = naming.judge or (_KIND.sub("", reviewer) if isinstance(reviewer, str) else "")
    said = Judgement(
        question=question,
        a=a,
        b=b,
        judge=judge,
        score_a=score_a,
        score_b=score_b,
        win=won(*scores) if scores else None,
        a_first=not b_first,
        category=category if isinstance(category, str) else "",
        reason=text,
        source=stem(path),
        line=line,
    )
    if in_file is None or in_file == in_text or not text.strip():
        return said, None
    return said, Difference(stem(path), line, question, in_file, in_text)


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a line, if anything."""
    text, given, models = row.get("text"), row.get("score"), row.get("models")
    if not _question(row):
        return "not a review: it has no question_id"
    if text is None and given is None:
        return "not a review: neither text nor score"
    if not isinstance(text, str | None):
        return f"text is not a string: {text!r:.60}"
    if given not in (None, UNREAD):
        numbers: list[Any] = given if isinstance(given, list) and len(given) == 2 else [None]
        if not all(type(score) in (int, float) and 0 <= score <= MOST for score in numbers):
            return f"score is not two numbers from 0 to {MOST:,}: {given!r:.60}"
    if models is not None:
        names = models if isinstance(models, list) and len(models) == 2 else [None]
        if not all(isinstance(name, str) and name for name in names) or names[0] == names[1]:
            return f"models must be two names, found: {models!r:.60}"
    return None


def _question(row: dict[str, Any]) -> str:
    found = row.get("question_id") if row.get("question_id") is not None else row.get("id")
    return identity(found) if isinstance(found, str | int | float) else ""


def models_of(path: Path, naming: Naming) -> tuple[str, str]:
    """a and b: as the user says, else by the file's name."""
    parts = stem(path).split("_vs_")
    named = parts if len(parts) == 2 and all(parts) else ["", ""]
    a, b = naming.a or named[0], naming.b or named[1]
    if naming.b and not a and len(parts) == 1:
        a = parts[0]
    if not (a and b):
        raise UsageError(
            f"whose reviews does {path} hold? Its lines do not say (`models`), and it is not called X_vs_Y; "
            "say it with --a and --b"
        )
    if a == b:
        raise UsageError(f"{path}: both models are called {a!r}; tell them apart with --a and --b")
    return a, b


SHAPE = "prompt, output_1, model_1, output_2, model_2, preference"


def read_preferences(path: Path, judge: str | None = None) -> ReviewSource:
    """`judge`: whatever the lines say (`annotator`). Raises PoolError where no line can be used."""
    judgements: list[Judgement] = []
    bad: list[BadRow] = []
    for line, row in Pool(path).objects():
        found = row.reason if isinstance(row, BadRow) else _preference(row, stem(path), line, judge)
        if isinstance(found, str):
            bad.append(BadRow(line, found))
        else:
            judgements.append(found)
    if not judgements:
        why = f"line {bad[0].line}: {bad[0].reason}" if bad else "it is empty"
        raise PoolError(f"no usable preference in {path}: {why}; a line holds {SHAPE}")
    return ReviewSource(stem(path), judgements, bad)


def _preference(row: dict[str, Any], source: str, line: int, judge: str | None) -> Judgement | str:
    prompt = row.get("prompt", row.get("instruction"))
    models = [row.get(f"model_{n}", row.get(f"generator_{n}")) for n in (2, 1)]
    outputs = [row.get(f"output_{n}") for n in (2, 1)]
    given = row.get("preference")
    if not isinstance(prompt, str) or not all(isinstance(text, str) for text in (*models, *outputs)):
        return (
            f"not a preference: prompt, model_1, model_2, output_1, output_2 must be texts; {columns_of(row)}"
        )
    if models[0] == models[1]:
        return f"both models are called {models[0]!r:.60}"
    if given is not None and not (type(given) in (int, float) and (given == 0 or 1 <= given <= 2)):
        return f"preference must be a number from 1 to 2, found {given!r:.60}"
    return Judgement(
        question=prompt,
        a=str(models[0]),
        b=str(models[1]),
        judge=judge or str(row.get("annotator") or ""),
        score_a=None,
        score_b=None,
        win=0.5 if given == 0 else None if given is None else float(given) - 1,
        a_first=None,
        category=str(row.get("dataset") or row.get("category") or ""),
        prompt=prompt,
        lengths=(len(str(outputs[0])), len(str(outputs[1]))),
        source=source,
        line=line,
    )


JUDGING = ("judge", "compare")
READABLE = ("stop", "length")  # a reply that was cut may have said its scores before


def read_run(run: Path, names: list[str], judge: str | None = None) -> list[ReviewSource]:
    """A source for each stage, in the order of `names`, or every stage in which somebody judged. `judge`:
    instead of the model's name. Raises UsageError, RunFolderError."""
    with closing(connect_reader(run)) as reader:
        there = {name: (number, counting(reader, number)) for number, name in stages(reader)}
        judged = [name for name, (_, counted) in there.items() if counted.settings.task in JUDGING]
        for name in names:
            if name not in judged:
                known = f"stages with judges are: {', '.join(judged)}"
                raise UsageError(
                    f"{run}: no judge in stage '{name}'; {known if judged else 'no stage of it has a judge'}"
                )
        if not judged:
            raise UsageError(
                f"{run}: no stage of it has a judge; its stages are: {', '.join(there) or 'none yet'}"
            )
        sources = []
        for name in names or judged:
            number, counted = there[name]
            damages = Damages(name)
            found = list(_judgements(reader, number, counted, judge or counted.settings.model, damages))
            if words := words_of([damages], run):
                tell(f"distill: {plain(words, 1000)}\n")
            total = stage_status(reader, number)["total"]
            sources.append(ReviewSource(name, found, unanswered=max(0, (total or 0) - len(found))))
        return sources


def _judgements(
    reader: sqlite3.Connection, number: int, counted: Counting, judge: str, damages: Damages
) -> Iterator[Judgement]:
    """Of one setting: judgements after two prompts are two measurements."""
    task = role(counted.settings)
    for row in stored(reader, number, READABLE, unparsed=True, plans=counted.plans, damages=damages):
        try:
            contest, text = task.decode(row.item), clean(answer_of(row.raw)[0])
        except Exception:  # of an older version's body, which has no checksum, or of a damaged row
            damages.add(row.position, "it cannot be read", row.item.get("id"))
            continue
        if not isinstance(contest, Contest):
            continue
        record = task.record(contest, text)
        said = verdict(contest, None if isinstance(record, str) else record, text)
        if record == "tie":
            win: float | None = 0.5
        elif isinstance(record, str):  # what the file that was named first has of the preference
            win = float(contest.order[0 if record == "first" else 1] == min(contest.order))
        elif said.score_first is None or said.score_second is None:
            win = None
        else:
            win = won(said.score_first, said.score_second)
        (_, answer_a, _), (_, answer_b, _) = by_file(contest, (0.0, 0.0))
        yield Judgement(
            question=contest.id,
            a=said.first,
            b=said.second,
            judge=judge,
            score_a=said.score_first,
            score_b=said.score_second,
            win=win,
            a_first=contest.order[0] < contest.order[1],
            category=contest.category,
            prompt=question(contest),
            lengths=(len(answer_a), len(answer_b)),
            reason=text,
            source=damages.stage,
            line=row.position,
        )
