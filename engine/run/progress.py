"""Shows a run while it goes: live on a terminal (one stage in full, several in a line each), elsewhere a
plain line now and then.

Reads the state of each stage, its teacher and the budget; changes nothing.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.limits.endpoints import Endpoint, Teacher
from engine.terminal import compact, console_of, dollars, duration, exact_dollars, percent, plain, tell

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

LIVE_SECONDS, LINE_SECONDS = 0.5, 5.0
# Where nobody looks all the time, a line every 5 seconds is for the beginning.
CALM_AFTER_SECONDS, CALM_LINE_SECONDS = 120.0, 60.0
MARGIN = 3  # columns left free: the ^C that a terminal echoes must not begin a line, which would stay
BAR = 8  # letters of a stage's bar where there are several
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
        parts += self.money()
        if self.seconds_left is not None:
            parts.append(("left", duration(self.seconds_left)))
        return parts + [("WAITING", words) for words in self.waits()]

    def _waits(self, endpoint: Endpoint) -> str:
        """Why nothing is sent to a server at the moment, or an empty text."""
        who = "the server" if self.teacher.is_one else endpoint.url
        limiter, breaker = endpoint.limiter, endpoint.breaker
        if endpoint.refusal:
            return f"{who} refused ({plain(endpoint.refusal, 120)}) and is paused"
        if breaker.is_open:
            return f"{who} is not answering ({plain(breaker.last_words, 120)}); {breaker.probes} probes"
        if limiter.paused_seconds > LINE_SECONDS:
            return f"{who} said so: {duration(limiter.paused_seconds)}"
        return ""

    def money(self) -> list[tuple[str, str]]:
        """What this run of the stage has cost, and under a cap what that has room for: the cap may be of
        the folder, with what other stages and earlier runs have spent."""
        spent = dollars(self.state.cost_micro / 1e6)
        if self.projected:
            spent += f", about {dollars(self.projected)} when it is done"
        budget = self.budget
        before = budget.spent - self.state.cost_micro
        if budget.cap is None:
            return [
                ("spent", spent + (f"; {dollars(budget.spent / 1e6)} in the folder" if before > 0 else ""))
            ]
        whose = "stage" if budget.above else "folder"
        cap = f"{dollars(budget.spent / 1e6)} of {exact_dollars(budget.cap)} spent in the {whose}"
        return [("spent", spent), ("budget", cap)]

    def line(self) -> list[str]:
        """The cells of its line among several stages."""
        state = self.state
        total = "?" if state.total is None else compact(state.total)
        waits = any(self._waits(endpoint) for endpoint in self.teacher.endpoints)
        left = duration(self.seconds_left) if self.seconds_left is not None else ""
        if state.total is not None and state.finished >= state.total:
            left = "done"
        return [
            f"{compact(state.done)} of {total}",
            compact(state.failed.total()),
            "batches" if state.batches else f"{self.rate:.1f}/s",
            dollars(state.cost_micro / 1e6),
            "waiting" if waits else left,
        ]

    def waits(self) -> list[str]:
        """Why nothing is sent to servers of its teacher."""
        return [words for endpoint in self.teacher.endpoints if (words := self._waits(endpoint))]


async def show(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    """Runs until cancelled."""
    if sys.stderr.isatty():
        from rich.live import Live

        loop, console = asyncio.get_running_loop(), console_of(stderr=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            ticks = 0
            while True:
                for view in views:
                    view.tick(loop.time())
                live.update(display(views, *console.size), refresh=True)
                await asyncio.sleep(LIVE_SECONDS)
                ticks += 1
                if ticks % 10 == 0:
                    on_tick()
    else:
        loop = asyncio.get_running_loop()
        for view in views:
            view.tick(loop.time())
        begun = told = loop.time()
        while True:
            await asyncio.sleep(LINE_SECONDS)
            on_tick()
            now = loop.time()
            every = CALM_LINE_SECONDS if now - begun > CALM_AFTER_SECONDS else LINE_SECONDS
            for view in views:
                view.tick(now)
            if now - told < every - LIVE_SECONDS:
                continue
            told = now
            for view in views:
                if len(views) == 1 or view.has_moved():
                    line = "; ".join(f"{label} {value}" for label, value in view.parts())
                    tell(f"{time.strftime('%H:%M:%S')} {view.stage}: {line}\n")


async def watch_silently(views: Sequence[View], on_tick: Callable[[], None]) -> None:
    """`--quiet`: nothing is shown, the ledger still learns the utilisation."""
    while True:
        await asyncio.sleep(LINE_SECONDS)
        on_tick()


def display(views: Sequence[View], width: int, height: int) -> "RenderableType":
    """What a terminal shows; it never has more lines than that, and no line is full."""
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    room = max(1, height - 3)  # with heads
    if len(views) == 1:
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        view, total = views[0], views[0].state.total
        table.add_row(
            Text(plain(view.stage, 24), style="bold"),
            ProgressBar(total=total or None, completed=view.state.finished, pulse=total is None),
        )
        for label, value in view.parts():
            table.add_row(label, Text(value, style="bold yellow" if label == "WAITING" else ""))
        return Constrain(table, width - MARGIN)
    waits = [f"{view.stage} WAITING: {words}" for view in views for words in view.waits()][
        : max(0, room - len(views) - 1)
    ]
    rows, shown = room - len(waits) - 1, list(views)
    if len(views) > rows:  # of those that are complete or not begun there is nothing to see
        shown.sort(key=lambda v: not v.state.in_flight and v.state.finished in (0, v.state.total))
        shown = shown[: max(0, rows - 1)]
    # the last line: money of all stages, and how far their common cap allows
    budget = views[0].budget.above or views[0].budget
    spent = dollars(sum(view.state.cost_micro for view in views) / 1e6)
    together = f"together {spent}, {sum(view.state.in_flight for view in views):,} in flight"
    if budget.cap is not None:
        together += f"; budget {dollars(budget.spent / 1e6)} of {exact_dollars(budget.cap)}"
    last = [together]
    if len(shown) < len(views):
        last.insert(0, f"and {len(views) - len(shown)} more stages")
    lines = [Text(plain(line, width - MARGIN), style="bold yellow") for line in waits]
    lines += [Text(plain(line, width - MARGIN), style="dim") for line in last]
    return Group(Constrain(_stage_lines(shown, width), width - MARGIN), *lines)


def _stage_lines(views: Sequence[View], width: int) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for head in ("stage", ""):
        table.add_column(head, no_wrap=True)
    for head in ("done", "failed", "rate", "spent", "left"):
        table.add_column(head, justify="right", no_wrap=True)
    name_width = max(8, min(40, width - 62))
    for view in views:
        total, cells = view.state.total, view.line()
        bar = ProgressBar(total=total or None, completed=view.state.finished, pulse=total is None, width=BAR)
        style = "bold yellow" if cells[-1] == "waiting" else ""
        name = Text(plain(view.stage, name_width), style=style)
        table.add_row(name, bar, *(Text(cell, style=style) for cell in cells))
    return table
