"""Sums, their ratio, wins, each with its interval over questions. Columns in, numbers out."""

from typing import Any

from evaluators.intervals import Floats, mean_interval, ratio_interval

SUMS = ("sum_a", "sum_b", "relative", "low", "high")


def scores(a: Floats, b: Floats) -> dict[str, float | None]:
    """The sums of two columns, and their ratio."""
    sum_a, sum_b = float(a.sum()), float(b.sum())
    low, high = ratio_interval(a, b)
    relative = sum_a / sum_b if sum_b else None
    return dict(zip(SUMS, (sum_a, sum_b, relative, low, high), strict=True))


def wins(win: Floats) -> dict[str, Any]:
    """win: a's share of each question. win_rate counts a tie as half a win."""
    low, high = mean_interval(win)
    return {
        "wins": int((win > 0.5).sum()),
        "ties": int((win == 0.5).sum()),
        "losses": int((win < 0.5).sum()),
        "win_rate": float(win.mean()) if len(win) else None,
        "win_rate_low": low,
        "win_rate_high": high,
    }
