"""Turns what the judge said of contests into data sets: pairs, rankings, reviews. Pure.

Scores come in the order in which the answers were shown and go out by model. Lines are dicts in
published shapes: GPT-4-LLM's comparisons (a is the better), FastChat's reviews. Knows neither the
ledger nor files.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations, groupby
from typing import Any

from engine.tasks.parse_scores import Preference
from engine.tasks.task import question
from store.records import Comparison, Contest, Verdict

Placed = tuple[str, str, float]  # model, answer, score


def by_file(contest: Contest, scores: tuple[float, ...]) -> list[Placed]:
    """(model, answer, score) in the order of the user's files, whatever the order shown."""
    shown = zip(contest.order, contest.models, contest.answers, scores, strict=True)
    return [(model, answer, score) for _, model, answer, score in sorted(shown)]


def comparisons(
    scored: Iterable[tuple[Contest, tuple[float, ...]]], min_margin: float = 0.0
) -> Iterator[Comparison]:
    """All C(K,2) pairs of every contest whose scores differ, by at least `min_margin`.

    Ties are left out, and so are pairs of equal answers, whatever scores they got: they teach nothing.
    """
    for contest, scores in scored:
        for one, other in combinations(by_file(contest, scores), 2):
            better, worse = (one, other) if one[2] > other[2] else (other, one)
            margin = better[2] - worse[2]
            if margin > 0 and margin >= min_margin and one[1] != other[1]:
                yield Comparison(
                    prompt=question(contest),
                    chosen=better[1],
                    rejected=worse[1],
                    margin=margin,
                    chosen_model=better[0],
                    rejected_model=worse[0],
                    chosen_score=better[2],
                    rejected_score=worse[2],
                )


def agreed(compared: Iterable[tuple[Contest, Preference | None]]) -> Iterator[Comparison]:
    """One pair for each contest in which the same answer won in both orders, and in every sample.

    `compared`: a contest's orders (and samples) next to each other; None is a reply that could not
    be read, which neither agrees nor disagrees. The margin is None: nobody said how much better.
    """
    for _, group in groupby(compared, key=lambda row: _same(row[0])):
        said = [(contest, preference) for contest, preference in group if preference]
        # the winner's place in the user's order of files, None for a tie
        winners = {
            None if preference == "tie" else contest.order[0 if preference == "first" else 1]
            for contest, preference in said
        }
        if len({contest.order for contest, _ in said}) == 2 and len(winners) == 1:
            contest, (winner,) = said[0][0], winners
            if winner is not None:
                place = contest.order.index(winner)
                yield Comparison(
                    prompt=question(contest),
                    chosen=contest.answers[place],
                    rejected=contest.answers[1 - place],
                    margin=None,
                    chosen_model=contest.models[place],
                    rejected_model=contest.models[1 - place],
                    chosen_score=None,
                    rejected_score=None,
                )


def _same(contest: Contest) -> tuple[object, ...]:
    answers = sorted(zip(contest.order, contest.models, contest.answers, strict=True))
    return contest.id, contest.prompt, contest.input, *answers


def comparison_line(pair: Comparison) -> dict[str, Any]:
    """GPT-4-LLM's shape (a is the better), with margin, models and scores beside it."""
    line = {
        "user_input": pair.prompt,
        "completion_a": pair.chosen,
        "completion_b": pair.rejected,
        "margin": pair.margin,
        "models": [pair.chosen_model, pair.rejected_model],
    }
    scores = [pair.chosen_score, pair.rejected_score]
    return line if None in scores else {**line, "scores": scores}


def ranking_line(contest: Contest, scores: tuple[float, ...]) -> dict[str, Any]:
    """All answers with their scores, for a loss over K answers.

    answers: in the order of the user's files. order[i]: which of `answers` was shown at place i.
    """
    answers = [{"model": m, "text": text, "score": score} for m, text, score in by_file(contest, scores)]
    files = sorted(contest.order)
    return {
        "prompt": question(contest),
        "answers": answers,
        "order": [files.index(file) for file in contest.order],
    }


def verdict(contest: Contest, scores: tuple[float, ...] | None, reply: str) -> Verdict:
    """A judge's reply about two models, by model. `scores` None: it could not be read."""
    first, second = sorted(zip(contest.order, contest.models, scores or (None, None), strict=True))
    return Verdict(
        question=contest.id,
        category=contest.category,
        first=first[1],
        second=second[1],
        score_first=first[2],
        score_second=second[2],
        order=contest.order,
        reason=reply,
    )


def review_line(said: Verdict) -> dict[str, Any]:
    """FastChat's review line. score: of models[0] and models[1], whoever was shown first; null
    where the reply could not be read. order: [0, 1] where models[0] was shown first, else [1, 0]."""
    whole = said.question.isdecimal() and str(int(said.question)) == said.question
    return {
        "question_id": int(said.question) if whole else said.question,
        "category": said.category,
        "models": [said.first, said.second],
        "text": said.reason,
        "score": None if said.score_first is None else [said.score_first, said.score_second],
        "order": list(said.order),
    }
