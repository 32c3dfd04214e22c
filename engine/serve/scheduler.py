"""The thread that computes: takes rows as they come, first come, first served, and writes them in one batch.

A short answer waits for no long one: it joins between two steps and leaves when it ends. Prompts are read
some at a time, so that a flood of them does not hold up those that are being written.
"""

import queue
import sys
import threading
from collections.abc import Iterator, Sequence

from engine.serve.model_loader import Student
from engine.serve.model_runner import Batch
from engine.serve.sequence import Generation

PROMPT_TOKENS_AT_ONCE = 4096  # padded; one prompt may have more
FAREWELL = 10.0  # seconds for the step that is being computed


class Worker:
    """`submit` from any thread; `Row.tell` is called from this one's."""

    def __init__(self, student: Student, most_rows: int) -> None:
        self._batch = Batch(student)
        self._most = most_rows
        self._inbox: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._waiting: list[Generation] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="student", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Generation]) -> None:
        for row in rows:
            self._inbox.put(row)

    def counts(self) -> dict[str, int]:
        return {"running": len(self._batch.rows), "waiting": len(self._waiting) + self._inbox.qsize()}

    def close(self) -> None:
        self._closing = True
        self._inbox.put(None)
        self._thread.join(FAREWELL)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._admit()
                self._batch.step()
            except Exception as error:  # out of memory, most of all; those who wait must hear of any
                print(f"a batch of {len(self._batch.rows)} rows failed: {error}", file=sys.stderr, flush=True)
                self._batch.fail()

    def _admit(self) -> None:
        """Rows that wait join, as many as there is room for. Waits where there is nothing else to do."""
        self._waiting.extend(self._arrived())
        self._waiting = [row for row in self._waiting if not row.gone]
        joining: list[Generation] = []
        for row in self._waiting[: self._most - len(self._batch.rows)]:
            width = max(len(one.prompt) for one in [*joining, row])
            if joining and width * (len(joining) + 1) > PROMPT_TOKENS_AT_ONCE:
                break
            joining.append(row)
        if joining:
            del self._waiting[: len(joining)]
            self._join(joining)

    def _join(self, rows: list[Generation]) -> None:
        try:
            self._batch.join(rows)
        except Exception:
            for row in rows:
                row.fail()
            raise

    def _arrived(self) -> Iterator[Generation]:
        if not self._batch.rows and not self._waiting:
            first = self._inbox.get()
            if first is not None:
                yield first
        while not self._inbox.empty():
            row = self._inbox.get()
            if row is not None:
                yield row
