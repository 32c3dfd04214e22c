"""Mechanical Turk: the HIT's page and its table, for the requester's site ('New batch with an existing
project': `hit.html` is the project's layout, `hits.csv` the batch).

One row of the table is one pair; how many workers see it is set there. Sides are drawn for each pair
and kept in `key.csv`, which stays at home: the table names neither model. Answers are the same safe
HTML as on the page, in ASCII and without `$`, since the site refuses letters beyond the 16-bit plane
and would look for `${…}` in them.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from evaluators.annotate.markdown import render
from evaluators.annotate.pages import HERE, templates
from evaluators.annotate.words import WORDS
from store.errors import UsageError
from store.files import replacing
from store.votes import Votes
from store.votes_rules import drawn_left
from store.votes_schema import Pair, Side, Study

PAGE, TABLE, KEY = "hit.html", "hits.csv", "key.csv"
COLUMNS = ("hit", "instruction", "input", "left", "right")
KEY_COLUMNS = ("hit", "pair", "question", "left", "right")
WHO = "\0mturk"  # as whom sides are drawn; no annotator can be called that


def write_hits(votes: Votes, out: Path) -> list[str]:
    """Writes the three files; returns lines that say what to do with them. Raises UsageError."""
    study = votes.study
    assert study
    pairs = votes.pairs()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / PAGE) as file:
            file.write(_page().encode("ascii"))
        _write(out / TABLE, COLUMNS, (_row(study, pair) for pair in pairs))
        _write(out / KEY, KEY_COLUMNS, (_key_row(study, pair) for pair in pairs))
    except OSError as error:
        raise UsageError(f"cannot write in {out}: {error.strerror}; name another folder") from error
    return [
        f"{out / PAGE}: the project's layout",
        f"{out / TABLE}: {len(pairs):,} HITs, to be published with {study.wanted} assignments each",
        f"{out / KEY}: which model is where; keep it to yourself",
        f"then: distill annotate --run DIR --import RESULTS.csv, with the same DIR ({study.a}, {study.b})",
    ]


def hit_id(study: Study, pair: int) -> str:
    """Tells nothing to a worker, and one run's HITs from another's."""
    return hashlib.blake2b(f"{study.fingerprint}\0{pair}".encode(), digest_size=10).hexdigest()


def left_of(study: Study, pair: int) -> Side:
    return drawn_left(study.seed, pair, WHO)


def _page() -> str:
    style = (HERE / "static" / "annotate.css").read_text()
    page = templates().get_template("hit.html").render(words=WORDS, style=style)
    return _ascii(str(page))


def _row(study: Study, pair: Pair) -> Sequence[str]:
    answers = [render(pair.answer_a), render(pair.answer_b)]
    left, right = answers if left_of(study, pair.id) == "a" else answers[::-1]
    texts = (escape(pair.instruction), escape(pair.input), left, right)
    return hit_id(study, pair.id), *(_ascii(text).replace("$", "&#36;") for text in texts)


def _key_row(study: Study, pair: Pair) -> Sequence[str]:
    names = [study.a, study.b]
    left, right = names if left_of(study, pair.id) == "a" else names[::-1]
    return hit_id(study, pair.id), str(pair.id), pair.question, left, right


def _ascii(html: str) -> str:
    return html.encode("ascii", "xmlcharrefreplace").decode()


def _write(path: Path, heads: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(heads)
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())
