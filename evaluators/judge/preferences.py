"""Reads preferences as AlpacaEval keeps them: two outputs, and 1 or 2 for the better (1.5, or once 0: a tie).

`model_2`, or `generator_2`, is the model that was evaluated, a here; the first is the reference, b. In which
order the judge saw them was drawn at random and is not told.
"""

from pathlib import Path
from typing import Any

from evaluators.judge.judgements import Judgement
from evaluators.judge.reviews import Source, stem
from store.columns import columns_of
from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow

SHAPE = "prompt, output_1, model_1, output_2, model_2, preference"


def read_preferences(path: Path, judge: str | None = None) -> Source:
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
    return Source(stem(path), judgements, bad)


def _preference(row: dict[str, Any], source: str, line: int, judge: str | None) -> Judgement | str:
    prompt = row.get("prompt", row.get("instruction"))
    models = [row.get(f"model_{n}", row.get(f"generator_{n}")) for n in (2, 1)]
    outputs = [row.get(f"output_{n}") for n in (2, 1)]
    given = row.get("preference")
    if not isinstance(prompt, str) or not all(isinstance(text, str) for text in (*models, *outputs)):
        return f"no preference: prompt, model_1, model_2, output_1, output_2 must be texts; {columns_of(row)}"
    if models[0] == models[1]:
        return f"both models are called {models[0]!r:.60}"
    if given is not None and not (type(given) in (int, float) and (given == 0 or 1 <= given <= 2)):
        return f"preference is none of 1, 2, and numbers between: {given!r:.60}"
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
