"""`distill rank`: a reward for every candidate, and the candidates' order by it.

candidates → windows of questions → batches sorted by length → OUT.scores, a line a batch → OUT, whole.
A run that ends early leaves OUT.scores; the same command reads it and continues with the next batch.
"""

import contextlib
import fcntl
import hashlib
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from store.errors import PoolError, UsageError
from store.files import is_plain, replacing
from store.pool import Pool
from store.records import BadRow, missing
from trainers.display import Display
from trainers.errors import Stopped
from trainers.reward_model import Precision, Scorer, planned

WINDOW = 2000  # questions that are sorted together, and in memory
BAD_SHOWN = 3
Row = dict[str, Any]


def run_rank(reward: Path, candidates: Path, out: Path, quiet: bool, groups: Path | None = None) -> int:
    """Returns the exit code. Raises UsageError, PoolError."""
    plain = is_plain(out)
    if not plain and groups is not None:
        raise UsageError(f"--split reads the ranking again: name a file for --out, not {out}")
    if plain and out.exists() and candidates.exists() and out.samefile(candidates):
        raise UsageError(f"--out {out} is the file of candidates, which would be lost; name another")
    if groups is not None and groups.exists() and not groups.is_dir():
        raise UsageError(f"--split {groups} is a file; name a folder")
    total, bad = survey(candidates, with_ids=groups is not None)
    with Display(quiet) as display:
        if bad:
            display.say(f"{len(bad):,} rows are unusable and left out: {'; '.join(bad[:BAD_SHOWN])}")
        with _beside(out, plain) as beside:
            scorer = Scorer(reward, begun_in(beside))
            with candidates.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            identity = {**scorer.identity, "candidates": digest, "window": WINDOW}
            with ScoreFile(beside, identity) as scores:
                if scores.known:
                    display.say(f"continuing after {scores.known:,} batches")
                try:
                    short = rank(scorer, candidates, out, scores, display, total)
                except KeyboardInterrupt as stop:
                    kept = "continues where it stopped" if plain else "begins again"
                    raise Stopped(f"interrupted; the same command {kept}") from stop
                scores.remove()
        if groups is not None:
            display.say(f"rank groups: {split(out, groups)}")
        if scorer.marked:
            display.say(f"{scorer.marked:,} of {total:,} candidates {scorer.read_as_text}")
        if short:
            display.say(f"{short:,} of {total:,} candidates were too long and read in part")
    return 0


@contextlib.contextmanager
def _beside(out: Path, plain: bool) -> Iterator[Path]:
    """Where the scores are kept while they are made. Beside a pipe or a device there is no place for a file,
    so that a ranking into one begins anew."""
    if plain:
        yield out.with_name(out.name + ".scores")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "scores"


def survey(path: Path, with_ids: bool = False) -> tuple[int, list[str]]:
    """How many candidates there are, and what is wrong with which rows. Raises PoolError where no row can
    be used, or where usable rows lack an id of their own `with_ids`, by which their groups are joined."""
    total, bad, usable = 0, [], False
    seen: set[Any] = set()
    for line, raw in Pool(path).objects():
        found = raw.reason if isinstance(raw, BadRow) else fault(raw)
        if found is None and isinstance(raw, dict):
            total, usable = total + len(raw["candidates"]), True
            if with_ids:
                own, where = raw.get("id"), f"{path}, line {line}"
                if not isinstance(own, str | int) or isinstance(own, bool):
                    raise PoolError(
                        f"{where}: --split needs an id (a text or a whole number) in every row of candidates"
                    )
                if own in seen:
                    raise PoolError(
                        f"{where}: the id {own!r} is an earlier row's too; --split needs one for each row"
                    )
                seen.add(own)
        else:
            bad.append(f"line {line}: {found}")
    if not usable:
        raise PoolError(f"nothing to rank in {path}: {'; '.join(bad[:BAD_SHOWN]) or 'it is empty'}")
    return total, bad


def fault(raw: Row) -> str | None:
    if not isinstance(raw.get("prompt"), str) or not raw["prompt"].strip():
        return missing(raw, "prompt")
    found = raw.get("candidates")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        return "candidates is not a list of texts"
    return None


def rank(scorer: Scorer, path: Path, out: Path, scores: "ScoreFile", display: Display, total: int) -> int:
    """Writes OUT; returns how many candidates were read in part."""
    done = short = 0
    with replacing(out) as file:
        for rows in windows(path):
            places = [(n, k) for n, row in enumerate(rows) for k in range(len(row["candidates"]))]
            answers = [scorer.readable((rows[n]["prompt"], rows[n]["candidates"][k])) for n, k in places]
            short += sum(answer.short for answer in answers)
            rewards = [[0.0] * len(row["candidates"]) for row in rows]
            for batch in planned(answers):
                found = scores.next() or scores.add(scorer.rewards([answers[i] for i in batch]))
                for i, reward in zip(batch, found, strict=True):
                    n, k = places[i]
                    rewards[n][k] = reward
                display.scored(done := done + len(batch), total)
            for row, own in zip(rows, rewards, strict=True):
                file.write(orjson.dumps(ranked(row, own)) + b"\n")
    return short


def windows(path: Path) -> Iterator[list[Row]]:
    usable = (raw for _, raw in Pool(path).objects() if isinstance(raw, dict) and fault(raw) is None)
    while rows := list(islice(usable, WINDOW)):
        yield rows


def ranked(row: Row, rewards: list[float]) -> Row:
    """order: places of the candidates, the best first; of equals the first first."""
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    return {**row, "scores": rewards, "order": order}


def split(ranked: Path, folder: Path) -> str:
    """Answer files of the best of each row, of the second best, and so on, as `judge` and `score` take
    them (with the questions given); the paper's Figure 4 compares such groups. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[IO[bytes]] = []
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        for _, row in Pool(ranked).objects():
            assert not isinstance(row, BadRow)  # we wrote it
            for place, candidate in enumerate(row["order"]):
                if place == len(files):
                    files.append(stack.enter_context(replacing(folder / f"rank{place + 1}.jsonl")))
                    names.append(str(folder / f"rank{place + 1}.jsonl"))
                files[place].write(
                    orjson.dumps({"id": row["id"], "text": row["candidates"][candidate]}) + b"\n"
                )
    for stale in folder.glob("rank*.jsonl"):  # of an earlier ranking of more candidates
        number = stale.stem.removeprefix("rank")
        if number.isdecimal() and int(number) > len(files):
            stale.unlink()
    return ", ".join(names) or "no candidates"


def begun_in(beside: Path) -> Precision | None:
    """The precision of a ranking that was interrupted."""
    try:
        with beside.open("rb") as file:
            found = orjson.loads(file.readline())["precision"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found in ("bf16", "fp32") else None


class ScoreFile:
    """The side file: what was scored so far, batch by batch, and whose scores they are."""

    def __init__(self, path: Path, identity: Row) -> None:
        self._path, self._identity = path, orjson.loads(orjson.dumps(identity))
        self._lines: list[list[float]] = []
        self._read = 0
        self._file: IO[bytes]

    def __enter__(self) -> "ScoreFile":
        try:
            self._file = self._path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self._path} is being written by another process; wait for it") from None
        except OSError as error:
            raise UsageError(f"cannot write {self._path}: {error.strerror}") from error
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def known(self) -> int:
        """Batches that need no scoring."""
        return len(self._lines)

    def next(self) -> list[float] | None:
        """The next batch's rewards, where an earlier run has them."""
        if self._read == len(self._lines):
            return None
        self._read += 1
        return self._lines[self._read - 1]

    def add(self, rewards: list[float]) -> list[float]:
        self._file.write(orjson.dumps(rewards) + b"\n")
        self._file.flush()
        return rewards

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _load(self) -> None:
        self._file.seek(0)
        held = self._file.read()
        whole = held[: held.rfind(b"\n") + 1]  # a kill may have torn the last line
        lines = [orjson.loads(line) for line in whole.splitlines()]
        self._file.truncate(len(whole))
        if not lines:
            self._file.write(orjson.dumps(self._identity) + b"\n")
            self._file.flush()
            return
        if lines[0] != self._identity:
            differs = [name for name, value in self._identity.items() if lines[0].get(name) != value]
            raise UsageError(
                f"{self._path} holds scores of another ranking (other {', '.join(differs)}): "
                "remove it, or name another --out"
            )
        self._lines = lines[1:]
