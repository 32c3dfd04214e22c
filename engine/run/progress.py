"""Shows a run while it goes: a live panel on a terminal, a plain line now and then elsewhere.

Reads the state of each stage, its teacher and the budget; changes nothing.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.limits.endpoints import Endpoint, Teacher
from engine.terminal import dollars, duration, percent, plain, tell

if TYPE_CHECKING:
    from rich.panel import Panel

LIVE_SECONDS, LINE_SECONDS = 0.5, 5.0
SMOOTHING = 0.8


@dataclass
class View:
    """What the display looks at, and its own memory of the rates."""

    stage: str
    state: RunState
    teacher: Teacher
    budget: Budget
    rate: float = 0.0
    token_rate: float = 0.0
    _at: float | None = None
    _answered: int = 0
    _tokens: int = 0
    _seen: tuple[int, int, int] = (0, 0, 0)

    def tick(self, now: float) -> None:
        """Updates the smoothed rates: answers and tokens a second."""
        tokens = self.state.prompt_tokens + self.state.completion_tokens
        if self._at is not None and now > self._at:
            passed = now - self._at
            weight = SMOOTHING ** (passed / LIVE_SECONDS) if self.rate else 0.0
            self.rate = weight * self.rate + (1 - weight) * (self.state.answered - self._answered) / passed
            self.token_rate = weight * self.token_rate + (1 - weight) * (tokens - self._tokens) / passed
        self._at, self._answered, self._tokens = now, self.state.answered, tokens

    def has_moved(self) -> bool:
        """Whether anything was asked or came since this was last called."""
        state = self.state
        before, self._seen = self._seen, (state.finished, state.asked, state.limited)
        return self._seen != before

    @property
    def left(self) -> int | None:
        """Samples that are still to be asked; what is stored and not read yet is not."""
        state = self.state
        if state.total is None:
            return None
        return max(0, state.total - state.finished - max(0, state.stored - state.known))

    @property
    def seconds_left(self) -> float | None:
        left = self.left
        return left / self.rate if left is not None and self.rate > 0.01 else None

    @property
    def projected(self) -> float | None:
        """Dollars of this run when it is done, at the mean cost of a request so far, with all its replies."""
        state, left = self.state, self.left
        if not state.ended or left is None:
            return None
        return (state.cost_micro + left * state.cost_micro / state.ended) / 1e6

    def parts(self) -> list[tuple[str, str]]:
        """(label, value) pairs, in the order in which people ask."""
        state = self.state
        total = "?" if state.total is None else f"{state.total:,}"
        done = f"{state.done:,} of {total}" + (f" ({state.known:,} from before)" if state.known else "")
        failed = ", ".join(f"{c} {n:,}" for c, n in sorted(state.failed.items()) if n) or "0"
        parts = [("done", done), ("failed", failed), ("in flight", str(state.in_flight))]
        if state.batches:
            parts.append(("batches", state.batches))
        else:
            parts.append(("rate", f"{self.rate:.1f} requests/s, {self.token_rate:,.0f} tokens/s"))
        used = self.teacher.utilisation()
        limits = [
            f"{name} {percent(used[name])}" for name in ("requests", "tokens") if used[name] is not None
        ]
        if limits:
            parts.append(("of the limit", ", ".join(limits) + f"; {state.limited} x 429"))
        elif state.limited:
            parts.append(("429s", str(state.limited)))
        parts.append(("spent", self._money()))
        if self.seconds_left is not None:
            parts.append(("left", duration(self.seconds_left)))
        return parts + [
            ("WAITING", words) for endpoint in self.teacher.endpoints if (words := self._waits(endpoint))
        ]

    def _waits(self, endpoint: Endpoint) -> str:
        """Why nothing is sent to a server at the moment, or an empty text."""
        who = "the server" if self.teacher.is_one else endpoint.url
        limiter, breaker = endpoint.limiter, endpoint.breaker
        if endpoint.refusal:
            return f"{who} refused ({plain(endpoint.refusal, 120)}) and rests"
        if breaker.is_open:
            return f"{who} is not answering ({plain(breaker.last_words, 120)}); {breaker.probes} probes"
        if limiter.paused_seconds > LINE_SECONDS:
            return f"{who} said so: {duration(limiter.paused_seconds)}"
        return ""

    def _money(self) -> str:
        spent = dollars(self.budget.spent / 1e6)
        if self.projected:
            spent += f", about {dollars(self.projected)} for this run"
        if self.budget.cap is not None:
            spent += f", cap {dollars(self.budget.cap / 1e6)}"
        return spent


async def show(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    """Runs until cancelled."""
    if sys.stderr.isatty():
        await _show_live(views, on_tick)
    else:
        await _show_lines(views, on_tick)


async def watch_silently(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    """`--quiet`: nothing is shown, the ledger still learns the utilisation."""
    while True:
        await asyncio.sleep(LINE_SECONDS)
        on_tick()


async def _show_lines(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for view in views:
        view.tick(loop.time())
    while True:
        await asyncio.sleep(LINE_SECONDS)
        on_tick()
        for view in views:
            view.tick(loop.time())
            if len(views) == 1 or view.has_moved():
                line = "; ".join(f"{label} {value}" for label, value in view.parts())
                tell(f"{view.stage}: {line}\n")


async def _show_live(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    loop = asyncio.get_running_loop()
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        ticks = 0
        while True:
            for view in views:
                view.tick(loop.time())
            live.update(Group(*map(_panel, views)), refresh=True)
            await asyncio.sleep(LIVE_SECONDS)
            ticks += 1
            if ticks % 10 == 0:
                on_tick()


def _panel(view: View) -> "Panel":
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    total = view.state.total
    table.add_row("", ProgressBar(total=total or None, completed=view.state.finished, pulse=total is None))
    for label, value in view.parts():
        style = "bold yellow" if label == "WAITING" else ""
        table.add_row(label, Text(value, style=style))
    return Panel(table, title=Text(view.stage), title_align="left", border_style="dim")
