"""Rows that are written together, and the thread that writes them, first come, first served.

A short answer waits for no long one: rows join between two steps, and leave when they end. Prompts are read
some at a time, so that a flood of them does not hold up those that are being written.

All share one cache of keys and values, padded on the left, so that the newest token of every row stands in
the last column. Joining pads the shorter side; leaving drops the row and the columns that no one needs.
"""

import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from engine.serve.model_loader import Student, takes
from engine.serve.sequence import Generation, keep_allowed, next_tokens

PROMPT_TOKENS_AT_ONCE = 4096  # padded; one prompt may have more
FAREWELL = 10.0  # seconds for the step that is being computed


class Batch:
    """mask: (rows, columns), 1 where a column holds a token of the row. logits: (rows, vocabulary), of the
    next token."""

    def __init__(self, student: Student) -> None:
        self.rows: list[Generation] = []
        self._student = student
        self._cache: Any = None
        self._mask: Any = None
        self._logits: Any = None
        self._positions = takes(student.model, "position_ids")
        self._last_only = {"logits_to_keep": 1} if takes(student.model, "logits_to_keep") else {}

    def join(self, rows: Sequence[Generation]) -> None:
        """Reads the prompts of new rows; equal ones once."""
        prompts = list(dict.fromkeys(tuple(row.prompt) for row in rows))
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        cache = DynamicCache()
        logits = self._forward(ids, mask.to(self._student.device), cache)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        shared = torch.tensor([places[tuple(row.prompt)] for row in rows], device=self._student.device)
        _select(cache, shared, 0)
        mask, logits = mask.to(self._student.device)[shared], logits[shared]
        if not self.rows:
            self._cache, self._mask, self._logits = cache, mask, logits
        else:
            width = max(self._mask.shape[1], mask.shape[1])
            self._mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])
            self._logits = torch.cat([self._logits, logits])
            for own, new in zip(self._cache.layers, cache.layers, strict=True):
                own.keys = _stacked(own.keys, new.keys, width)
                own.values = _stacked(own.values, new.values, width)
        self.rows.extend(rows)

    def step(self) -> None:
        """One token for each row; those that have ended leave."""
        self._keep([place for place, row in enumerate(self.rows) if not row.gone])
        if not self.rows:
            return
        keep_allowed(self._logits, [row.matcher for row in self.rows])
        broken = self._logits.isnan().any(-1).tolist()
        tokens = next_tokens(self._logits, self.rows)
        written = self.rows
        for row, token, nonsense in zip(written, tokens, broken, strict=True):
            if nonsense:
                row.finish = "error"
            else:
                row.take(token, self._student.ends)
        going_on = [place for place, row in enumerate(written) if row.finish is None]
        self._keep(going_on)
        for row in written:
            row.report()
        if going_on:
            self._mask = pad(self._mask, (0, 1), value=1)
            new = torch.tensor([[tokens[place]] for place in going_on])
            self._logits = self._forward(new, self._mask, self._cache)

    def fail(self) -> None:
        """All rows end with an error."""
        rows, self.rows = self.rows, []
        self._cache = self._mask = self._logits = None
        for row in rows:
            row.fail()

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """The logits of what follows the last column."""
        more: dict[str, Any] = dict(self._last_only)
        if self._positions:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.inference_mode():
            said = self._student.model(
                input_ids=ids.to(self._student.device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **more,
            )
            logits: torch.Tensor = said.logits[:, -1, : self._student.vocabulary].float()
        return logits

    def _keep(self, places: list[int]) -> None:
        """Only these rows continue."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if not self.rows:
            self._cache = self._mask = self._logits = None
            return
        chosen = torch.tensor(places, device=self._student.device)
        mask = self._mask[chosen]
        unused = int(mask.argmax(-1).min())
        _select(self._cache, chosen, unused)
        self._mask, self._logits = mask[:, unused:], self._logits[chosen]


def _stacked(one: torch.Tensor, other: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, heads, columns, size), the shorter padded on the left."""
    return torch.cat([pad(some, (0, 0, width - some.shape[2], 0)) for some in (one, other)])


def _select(cache: Any, rows: torch.Tensor, left: int) -> None:
    """These rows, from this column on."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows, :, left:], layer.values[rows, :, left:]


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
        arrived = []
        if not self._batch.rows and not self._waiting:
            arrived.append(self._inbox.get())
        while not self._inbox.empty():
            arrived.append(self._inbox.get())
        self._waiting += [row for row in arrived if row is not None]
        self._waiting = [row for row in self._waiting if not row.gone]
        joining: list[Generation] = []
        for row in self._waiting[: self._most - len(self._batch.rows)]:
            width = max(len(one.prompt) for one in [*joining, row])
            if joining and width * (len(joining) + 1) > PROMPT_TOKENS_AT_ONCE:
                break
            joining.append(row)
        if joining:
            del self._waiting[: len(joining)]
            try:
                self._batch.join(joining)
            except Exception:
                for row in joining:
                    row.fail()
                raise
