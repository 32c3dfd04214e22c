"""What a report can show: the ledger, training folders, results of evaluations.

A training folder is recognised by `training/run.json` or `metrics.jsonl`, an evaluation by the keys of its
JSON, whatever it is called. Such files may come from anyone: one that cannot be read or shown is listed
with its reason, and the rest is reported.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import orjson

from engine.provider.responses import stored_answer
from evaluators.report.figures import Block
from store.errors import Damages, UsageError, is_intact, why_unread
from store.queries import last_runs, stage_status, stages

DEEP = 3  # folders below the run folder in which trainings are looked for
MOST_JSON = 64 * 2**20  # bytes of an evaluation
RUNS = 10_000
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StageInput:
    """counts: as `status` has them. runs: its processes, oldest first."""

    number: int
    name: str
    task: str
    samples: int
    counts: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]

    @property
    def settings(self) -> Json:
        return dict(self.runs[-1]["settings"] or {}) if self.runs else {}

    @property
    def model(self) -> str:
        return str(self.settings.get("model", "?"))


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """A training's folder, as `train` leaves it. finished: {} while it is under way; quality: of a reward
    model on held-out prompts; title: its card's, '' until there is one."""

    name: str
    title: str
    setup: Json
    metrics: Sequence[Json]
    finished: Json
    quality: Json


@dataclass(frozen=True, slots=True)
class Evaluation:
    name: str
    kind: str
    data: Json


@dataclass(frozen=True, slots=True)
class Inputs:
    run: Path
    reader: sqlite3.Connection
    stages: Sequence[StageInput]
    trainings: Sequence[TrainingInput]
    evaluations: list[Evaluation]
    unread: list[tuple[str, str]]
    seed: int
    damages: dict[str, Damages] = field(default_factory=dict)

    def damaged(self, stage: StageInput) -> Damages:
        """Where answers of a stage are told that are damaged and left out."""
        return self.damages.setdefault(stage.name, Damages(stage.name))

    def evaluated(self, kind: str) -> list[Evaluation]:
        return [e for e in self.evaluations if e.kind == kind]

    def of_task(self, *tasks: str) -> list[StageInput]:
        return [stage for stage in self.stages if stage.task in tasks and stage.counts["done"]]


def look(
    run: Path,
    reader: sqlite3.Connection,
    trainings: Sequence[Path],
    evaluations: Sequence[Path],
    seed: int,
) -> Inputs:
    """Everything below RUN, and what was named. Raises UsageError for a named one that is none."""
    unread: list[tuple[str, str]] = []
    for folder in trainings:
        if not _is_training(folder):
            expected = folder / "metrics.jsonl"
            raise UsageError(f"--training {folder}: there is no training run (expected {expected})")
    folders = dict.fromkeys([*_below(run, DEEP), *trainings])
    files = dict.fromkeys([*sorted((run / "evaluations").glob("*.json")), *evaluations])
    read = [_evaluation(file, file in evaluations, unread) for file in files]
    found: list[StageInput] = []
    for number, name in stages(reader):
        task, samples = reader.execute("SELECT task, samples FROM stages WHERE id = ?", (number,)).fetchone()
        runs = last_runs(reader, number, RUNS)[::-1]
        found.append(StageInput(number, name, task, samples, stage_status(reader, number), runs))
    return Inputs(
        run,
        reader,
        found,
        [one for folder in folders if (one := _training(run, folder, unread))],
        [one for one in read if one],
        unread,
        seed,
    )


def _is_training(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() or (folder / "training" / "run.json").is_file()


def _below(folder: Path, deep: int) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir()) if deep else []
    except OSError:  # somebody else's, and not ours to read
        return
    for found in inside:
        if found.is_dir() and not found.is_symlink():
            if _is_training(found):
                yield found
            else:
                yield from _below(found, deep - 1)


def _training(run: Path, folder: Path, unread: list[tuple[str, str]]) -> TrainingInput | None:
    name = str(folder.relative_to(run)) if folder.is_relative_to(run) else folder.name
    title, card = "", folder / "README.md"
    try:
        if card.is_file():  # its first heading
            with card.open(encoding="utf-8", errors="replace") as lines:
                title = next((line[2:].strip() for line in lines if line.startswith("# ")), "")
        metrics, log = [], folder / "metrics.jsonl"
        for text in log.read_bytes().splitlines() if log.is_file() else ():
            try:
                record = orjson.loads(text)
            except orjson.JSONDecodeError:  # a last line that is not complete
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                metrics.append(record)
        return TrainingInput(
            name,
            title,
            _object(folder / "training" / "run.json"),
            metrics,
            _object(folder / "training" / "finished.json"),
            _object(folder / "report.json"),
        )
    except (OSError, ValueError) as error:
        unread.append((f"training {name}", f"cannot be read: {error}"))
        return None


def _object(path: Path) -> Json:
    if not path.is_file():
        return {}
    found = orjson.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}


def _evaluation(path: Path, is_named: bool, unread: list[tuple[str, str]]) -> Evaluation | None:
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON >> 20} MiB")
        data = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        why = why_unread(error) if isinstance(error, OSError) else str(error)
        _refuse(path, f"cannot be read: {why}", is_named, unread)
        return None
    kind = kind_of(data)
    if kind is None:
        _refuse(path, "is not what `evaluate … --json` writes", is_named, unread)
        return None
    return Evaluation(path.stem, kind, data)


def _refuse(path: Path, words: str, is_named: bool, unread: list[tuple[str, str]]) -> None:
    if is_named:
        raise UsageError(f"--evaluation {path}: {words}")
    unread.append((f"evaluations/{path.name}", words))


def kind_of(data: Any) -> str | None:
    """Which command wrote it, by what it holds."""
    if not isinstance(data, dict):
        return None
    inner = data.get("data")
    sets = [found for found in inner.values() if isinstance(found, dict)] if isinstance(inner, dict) else []
    first: Json = sets[0] if sets else {}
    signs = {
        "judge": isinstance(data.get("pairs"), list),
        "ranking": isinstance(data.get("ranks"), list) or isinstance(data.get("groups"), list),
        "reward": isinstance(data.get("pairs"), int) and "accuracy" in data,
        "rouge": isinstance(data.get("models"), dict),
        "human": isinstance(data.get("criteria"), dict),
        "lengths": "units" in data and isinstance(inner, dict),
        "verbs": "distinct_pairs" in first,
        "scores": "scale" in data and isinstance(inner, dict),
        "duplicates": "threshold" in data and isinstance(data.get("near"), dict),
        "overlap": isinstance(data.get("tests"), dict) and "n" in data,
        "shares": "refused_in_words" in first,
    }
    return next((kind for kind, there in signs.items() if there), None)


NOT_THERE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)
Tell = Callable[[Evaluation, int], Iterable[Block]]  # (evaluation, its number from 1)


def told(found: Inputs, kinds: Sequence[str], tell: Tell) -> list[tuple[Evaluation, list[Block]]]:
    """(evaluation, blocks) of those of some kinds."""
    heard = []
    mine = [e for kind in kinds for e in found.evaluated(kind)]
    for number, evaluation in enumerate(mine, 1):
        try:
            heard.append((evaluation, list(tell(evaluation, number))))
        except NOT_THERE as error:
            words = (
                f"is not as `evaluate {evaluation.kind} --json` writes it ({type(error).__name__}: {error})"
            )
            found.unread.append((f"evaluation {evaluation.name}", words))
    return heard


# Rows of a stage, drawn by their place: written for ledgers with millions of rows.
TRIES = 20  # places drawn for each row wanted: some hold no row of the kind
LAST = "SELECT max(position), count(*) FROM samples WHERE stage = ?"
_DRAWN = """
SELECT a.position, a.sample, CAST(w.item AS BLOB), CAST(b.raw AS BLOB), b.checksum, p.outcome, p.model,
  p.completion_tokens, p.cost_micro
FROM samples a JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
JOIN bodies b ON b.response = p.id JOIN rows w ON w.id = (a.stage << 40) + a.position
WHERE a.stage = ? AND a.position >= ? AND a.position <= ? ORDER BY a.position, a.sample"""


class SampleRow(NamedTuple):
    """A pool row with its answer. item: its JSON; text: the teacher's words."""

    position: int
    sample: int
    item: dict[str, Any]
    text: str
    outcome: str
    model: str
    tokens: int
    cost_micro: int


def _row(found: Sequence[Any], damages: Damages) -> SampleRow | None:
    """None for one that is damaged, which `damages` is told of."""
    position, sample, item, raw, checksum, *rest = found
    if not is_intact(raw, checksum):
        damages.add(position, "its checksum differs")
        return None
    if (answer := stored_answer(raw)) is None:  # of an older version's body, which has no checksum
        damages.add(position, "it cannot be read")
        return None
    try:
        return SampleRow(position, sample, orjson.loads(item), answer[0], *rest)
    except Exception as error:  # of a damaged row
        damages.add(position, f"it cannot be read ({type(error).__name__})")
        return None


def drawn(of: Inputs, stage: StageInput, count: int, what: str) -> list[SampleRow]:
    """Answered rows of a stage, drawn by their places with the report's seed, in pool order. what: for
    which they are drawn, so that others are drawn elsewhere."""
    last, _ = of.reader.execute(LAST, (stage.number,)).fetchone()
    if last is None:
        return []
    random = Random(f"{of.seed} {what} {stage.number}")
    if last + 1 <= count * TRIES:
        places = random.sample(range(last + 1), last + 1)
    else:
        places = [random.randrange(last + 1) for _ in range(count * TRIES)]
    found: dict[int, SampleRow] = {}
    for place in places:
        if len(found) == count:
            break
        row = of.reader.execute(_DRAWN + " LIMIT 1", (stage.number, place, place)).fetchone()
        if row and (read := _row(row, of.damaged(stage))):
            found[place] = read
    return [found[place] for place in sorted(found)]


def answered(of: Inputs, stage: StageInput, most: int, what: str) -> Iterator[SampleRow]:
    """All answered rows in pool order; of many, so many in runs of neighbours that begin at drawn places."""
    last, samples = of.reader.execute(LAST, (stage.number,)).fetchone()
    if last is None:
        return
    if samples <= most:
        yield from _rows(of, stage, 0, last)
        return
    length = 100
    random = Random(f"{of.seed} {what} {stage.number}")
    starts = sorted(random.sample(range(0, last + 1, length), max(1, most * (last + 1) // samples // length)))
    for start in starts:
        yield from _rows(of, stage, start, start + length - 1)


def _rows(of: Inputs, stage: StageInput, first: int, last: int) -> Iterator[SampleRow]:
    for found in of.reader.execute(_DRAWN, (stage.number, first, last)):
        if row := _row(found, of.damaged(stage)):
            yield row
