"""The rows of a file become those of a stage, with their answers. Holds what must be known of each request,
eight bytes each, and no row. Knows nothing of files."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from engine.collect.plan import Plan
from engine.collect.settings import Settings
from engine.provider.responses import Reply, read_reply, text_of
from store.errors import DistillError
from store.key_index import ANSWERED, Known, known_keys
from store.ledger import Ledger
from store.records import BadRow, Instruction, Item, Request, Response, Usage
from store.stage_rows import answer_to, end_of, first_requests

IMPORTED = "imported"


@dataclass(slots=True)
class ImportCounts:
    """What became of a file's rows."""

    taken: int = 0
    known: int = 0  # the same answer was there
    others: int = 0  # another answer was there, which stays
    empty: int = 0
    bad: int = 0
    first_bad: BadRow | None = None

    def count_bad(self, row: BadRow) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or row

    @property
    def rows(self) -> int:
        return self.taken + self.known + self.others + self.empty


class PerRequest:
    """A number for each request, by its id; 0 until it is set. Eight bytes each."""

    def __init__(self) -> None:
        self._values = array("Q")

    def __getitem__(self, request: int) -> int:
        return self._values[request] if request < len(self._values) else 0

    def __setitem__(self, request: int, value: int) -> None:
        if request >= len(self._values):
            self._values.frombytes(bytes(8 * (request + 1024 - len(self._values))))
        self._values[request] = value


class Importer:
    """Takes the rows of a file one by one. `take` queues what is to be written; whoever calls lets
    the ledger commit between two rows."""

    def __init__(self, settings: Settings, plan: Plan, ledger: Ledger, stage: int, run: int) -> None:
        self._settings, self._plan, self._ledger, self._stage, self._run = settings, plan, ledger, stage, run
        self._known = Known(ledger.run, known_keys(ledger.run))
        self._end = end_of(self._known.reader, stage)
        self._places = PerRequest()  # of rows that the stage had and this file has not shown yet
        for request in first_requests(self._known.reader, stage):
            self._places[request] += 1
        self._digests = PerRequest()  # of answers, as far as they were looked at
        self._claimed = PerRequest()  # bits: samples that rows of this file stand for
        self.counts = ImportCounts()

    def close(self) -> None:
        self._known.close()

    def take(self, row: Item | BadRow) -> None:
        counts = self.counts
        if isinstance(row, BadRow):
            counts.count_bad(row)
            return
        assert isinstance(row, Instruction)
        messages, body, keys = self._plan.seal(row)
        keys, belongs = self._plan.kept(row, keys, self._known.has_answer)
        tokens = self._plan.tokenizer.count_messages(messages)
        numbers, new = [], []
        for sample, key in enumerate(keys):
            number = self._known.find(key)
            if number is None:
                number = self._known.new(key)
                new.append(Request(number, key, sample, body, tokens, self._plan.max_tokens))
            numbers.append(number)
        self._place(row, numbers, new, belongs)
        # The shape of a reply, marked as imported, so that one reader serves all.
        message = {"role": "assistant", "content": row.output}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        raw = orjson.dumps({"object": IMPORTED, "model": self._settings.model, "choices": [choice]})
        reply = read_reply(raw)
        if reply.is_unusable:
            counts.empty += 1
        else:
            self._answer(numbers, reply, raw, tokens)

    def _place(self, row: Instruction, numbers: Sequence[int], new: Sequence[Request], plan: int) -> None:
        """Equal rows have a place each, unless each row has several samples: then they are these."""
        first = numbers[0]
        if self._places[first]:
            self._places[first] -= len(numbers) == 1
            return
        self._places[first] = len(numbers) > 1
        if row.id == str(self.counts.rows):  # none of its own, but its number in the file
            row = replace(row, id=str(self._end))
        item = self._plan.task.encode(row)
        self._ledger.place(self._stage, self._end, item, plan, list(enumerate(numbers)), new)
        self._end += 1

    def _answer(self, numbers: Sequence[int], reply: Reply, raw: bytes, prompt_tokens: int) -> None:
        """For the first sample that no row of this file stands for and that has this answer or none."""
        first, digest = numbers[0], _digest(reply.text)
        free = [n for n in range(len(numbers)) if not self._claimed[first] >> min(n, 63) & 1]
        for sample in free:
            if self._digest_of(numbers[sample]) == digest:
                self._claimed[first] |= 1 << min(sample, 63)
                self.counts.known += 1
                return
        for sample in free:
            if self._known.index.state(numbers[sample]) != ANSWERED:
                self._claimed[first] |= 1 << min(sample, 63)
                self._put(numbers[sample], reply, raw, prompt_tokens)
                self._digests[numbers[sample]] = digest
                self.counts.taken += 1
                return
        if any(self._digest_of(number) == digest for number in numbers):
            self.counts.known += 1
        else:
            self.counts.others += 1

    def _put(self, request: int, reply: Reply, raw: bytes, prompt_tokens: int) -> None:
        attempt = self._ledger.journal(self._run, self._stage, request, 0)
        count = self._plan.tokenizer.count
        usage = Usage(prompt_tokens, count(reply.text) + count(reply.reasoning))
        text, reasoning = (None, None) if reply.plain else (reply.text, reply.reasoning or None)
        response = Response(
            reply.outcome, IMPORTED, usage, raw, 0, 0.0, self._settings.model, text, reasoning, estimated=True
        )
        self._ledger.put(self._stage, attempt, request, response, 0, final=True)
        self._known.index.mark(request, ANSWERED)

    def _digest_of(self, request: int) -> int:
        """Of the answer to a request; 0 where it has none."""
        if not self._digests[request] and self._known.index.state(request) == ANSWERED:
            raw = answer_to(self._known.reader, request)
            try:
                self._digests[request] = 2 if raw is None else _digest(text_of(raw))
            except (ValueError, DistillError):  # it cannot be read: no answer of a file is the same
                self._digests[request] = 2
        return self._digests[request]


def _digest(text: str) -> int:
    """Never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()) | 1
