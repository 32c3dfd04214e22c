"""A submitted form -> a Ballot, or what is wrong with it. Sides become models here, and nowhere else."""

import math
from collections.abc import Mapping
from typing import cast

from evaluators.annotate.words import PLACES, WORDS
from store.votes_schema import CRITERIA, Ballot, Choice, Side

LONGEST_NOTE = 4000


def other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def as_choice(place: str, left: Side) -> Choice:
    """Which model a place is, given who is on the left."""
    return "tie" if place == "tie" else left if place == "left" else other(left)


def as_place(choice: Choice, left: Side) -> str:
    return "tie" if choice == "tie" else "left" if choice == left else "right"


def read_ballot(form: Mapping[str, object], left: Side) -> Ballot | list[str]:
    """The vote, or the titles of the criteria that it leaves open."""
    places = chosen(form)
    missing = [word.title for word in WORDS if word.name not in places]
    if missing:
        return missing
    note = str(form.get("note", "")).replace("\r\n", "\n").strip()[:LONGEST_NOTE]
    helpful, honest, harmless = (as_choice(places[name], left) for name in CRITERIA)
    return Ballot(helpful, honest, harmless, note)


def chosen(form: Mapping[str, object]) -> dict[str, str]:
    """Criterion -> place, of those that are there and valid."""
    return {name: cast(str, form[name]) for name in CRITERIA if form.get(name) in PLACES}


def places_of(ballot: Ballot | None, left: Side) -> dict[str, str]:
    """The same of a vote that was cast."""
    if ballot is None:
        return {}
    return {name: as_place(getattr(ballot, name), left) for name in CRITERIA}


def active_seconds(form: Mapping[str, object]) -> float | None:
    """How long the page was in view, as the browser says; None where it does not say it credibly."""
    try:
        seconds = float(cast(str, form.get("active")))
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
