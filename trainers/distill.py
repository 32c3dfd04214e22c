"""`distill train distill`, from the command to the result: check, read, train, publish.

The teacher is a folder, of which the training reads the probabilities (distill_worker.py), or an API, whose
log-probabilities stand in the rows as `export --format logprobs` writes them. Both must have the student's
tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from store.errors import PoolError, UsageError
from store.pool import Pool
from store.student import TextTokens
from trainers.encoding import encode
from trainers.model_card import finish
from trainers.models import check_whole, config_of, fingerprint, resolve, skeleton, tokenizer_of
from trainers.preflight import Setup, carry_out, check_length, check_size, identity_of, set_up, tell_time
from trainers.rows import TokenRows, gathered, save
from trainers.run_folder import held_by
from trainers.sft import packed, samples, tables
from trainers.sft import read as read_rows
from trainers.sft_data import SftCounts, as_lesson, fit
from trainers.teacher_targets import Targets, learnt_places, softened
from trainers.trl_config import DistillRecipe

ABOUT = "Distilled from {}, made by `distill train distill`."
BAD_SHOWN = 3


def run_distill(recipe: DistillRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    begun = set_up(recipe, resume, quiet, env)
    if begun is None:
        return 0
    recipe, setup = begun
    check_length(recipe, setup.config)
    packs, shapes = packed(recipe, setup.config), skeleton(setup.config)
    check_whole(setup.model, shapes)
    teacher, size = teacher_of(recipe, setup)
    kept = size if recipe.on_policy else 0  # else it reads the rows before the student is there
    parameters = check_size(recipe, setup, shapes, setup.config.vocab_size, "rows", kept)
    with held_by(setup.folder, recipe.node_rank):
        if teacher is None:
            rows, counts = stored(recipe, setup)
        else:
            rows, counts = read_rows(recipe, setup)
        tell_time(recipe, setup, parameters + size // 3, rows.lengths[rows.trained].sum())
        identity = identity_of(recipe, rows.digest, setup.model, packed=packs)
        identity["teacher"] = fingerprint(teacher) if teacher else "in the rows"
        job = {"packed": packs, "template": counts.template, "teacher": teacher}
        carry_out(recipe, setup, "distill", identity, **job)
        if recipe.node_rank == 0:
            said = tables(recipe, rows, counts, packs, setup.folder)
            about = ABOUT.format(
                f"`{recipe.teacher}`" if recipe.teacher else "the log-probabilities of an API"
            )
            finish(
                recipe, setup.folder, len(rows.trained), about, said, samples(setup.folder), "distillation"
            )
            setup.display.say(f"the model is in {recipe.out}")
    return 0


def teacher_of(recipe: DistillRecipe, setup: Setup) -> tuple[str | None, int]:
    """(the teacher's folder or hub name, its parameters). Raises UsageError where it has other tokens than
    the student."""
    if recipe.teacher is None:
        return None, 0
    teacher = resolve(recipe.teacher, setup.folder.work)
    config = config_of(teacher)
    shapes = skeleton(config)
    check_whole(teacher, shapes)
    check_length(recipe, config)
    mine, theirs = tokenizer_of(setup.model).get_vocab(), tokenizer_of(teacher).get_vocab()
    if mine != theirs:
        other = next((token for token in mine if theirs.get(token) != mine[token]), None)
        other = other or next(token for token in theirs if token not in mine)
        raise UsageError(
            f"--teacher {recipe.teacher}: its tokenizer is not the student's ({len(theirs):,} and "
            f"{len(mine):,} tokens; {other!r} differs). Only a student with the same tokens can learn their "
            "probabilities; `train sft` learns the answers of any teacher"
        )
    if recipe.on_policy and config.vocab_size != setup.config.vocab_size:
        raise UsageError(
            f"--teacher {recipe.teacher}: it gives {config.vocab_size:,} numbers for a token, the student "
            f"{setup.config.vocab_size:,}; --on-policy compares them one by one"
        )
    return teacher, sum(p.numel() for p in shapes.parameters())


def stored(recipe: DistillRecipe, setup: Setup) -> tuple[TokenRows, SftCounts]:
    """Rows with the log-probabilities of an API. Raises PoolError where none has any of these tokens."""
    texts, counts = TextTokens(tokenizer_of(setup.model)), SftCounts()
    counts.controls = texts.seen
    vocabulary = Vocabulary(texts.tokenizer)
    encoded, found = [], []
    for line, raw in Pool(recipe.data).objects():
        if recipe.limit is not None and counts.read == recipe.limit:
            break
        counts.read += 1
        made = one_row(raw, recipe, texts, vocabulary, counts)
        if isinstance(made, str):
            counts.refuse(line, made)
        elif made is not None:
            row, targets = made
            counts.used += 1
            counts.tokens += len(row[0])
            counts.learnt += sum(row[1])
            encoded.append(row)
            found.append(targets)
    if not encoded:
        told = "; ".join(counts.bad_shown) or (
            f"{counts.too_long + counts.no_room} are over --max-length" if counts.read else "it is empty"
        )
        raise PoolError(
            f"no row of {recipe.data} can be distilled: {told}. `generate --param logprobs=true --param "
            "top_logprobs=20` stores them, `export --format logprobs` writes them; --teacher takes a folder"
        )
    rows = gathered(encoded, recipe.held_out, recipe.seed)
    folder = setup.folder.rows(recipe.node_rank)
    save(rows, folder)
    Targets.joined(found).write(folder)
    setup.display.say(
        f"{counts.used:,} of {counts.read:,} rows with log-probabilities, {counts.learnt:,} tokens are "
        f"learnt ({counts.template} template); {len(rows.held_out):,} rows held out"
    )
    for number, words in ((counts.too_long, "too long"), (counts.bad, "; ".join(counts.bad_shown))):
        if number:
            setup.display.say(f"  {number:,} rows left out: {words}")
    return rows, counts


Row = tuple[list[int], list[bool]]


def one_row(
    raw: Any, recipe: DistillRecipe, texts: TextTokens, vocabulary: "Vocabulary", counts: SftCounts
) -> tuple[Row, Targets] | str | None:
    """A row as tokens, and what the teacher said at each; what is wrong with it; None where it is too
    long."""
    if not isinstance(raw, dict):
        return str(raw.reason)
    said = raw.get("logprobs")
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) for one in said):
        return "no logprobs"
    lesson = as_lesson(raw)
    if isinstance(lesson, str):
        return lesson
    template = recipe.template or ("chat" if texts.tokenizer.chat_template else "alpaca")
    row = encode(lesson.without_thinking().row, template, texts)
    if isinstance(row, str):
        return row
    counts.template = template
    fitted = fit(row, recipe.max_length, "drop", counts)
    if fitted is None:
        return None
    tokens = np.array(fitted[0])[1 + learnt_places(np.array(fitted[1]))]
    if len(said) not in (len(tokens), len(tokens) - 1):  # most APIs tell nothing of the end
        return "the teacher's tokens are not the student's: it wrote another number of them"
    ids: Any = np.zeros((len(tokens), recipe.top), np.int32)
    logs: Any = np.full((len(tokens), recipe.top), -np.inf, np.float32)
    for place, token in enumerate(tokens.tolist()):
        if place == len(said):
            ids[place, 0], logs[place, 0] = token, 0.0
            continue
        if place < len(tokens) - 1 and vocabulary.of(said[place]) != token:
            return f"the teacher's tokens are not the student's: {said[place].get('token')!r:.40}"
        known = [(vocabulary.of(one), log_of(one)) for one in alternatives(said[place])]
        usable = {i: log for i, log in known if i is not None and log is not None}
        best = sorted(usable.items(), key=lambda pair: -pair[1])
        for n, (i, log) in enumerate(best[: recipe.top]):
            ids[place, n], logs[place, n] = i, log
        logs[place] = softened(logs[place], recipe.temperature)
        if not best:
            return f"no alternative of {said[place].get('token')!r:.40} is a token of the student"
    return fitted, Targets(ids, logs)


def alternatives(said: dict[str, Any]) -> list[dict[str, Any]]:
    """What the API told of a place: its most likely tokens, or the one that was taken alone."""
    found = said.get("top_logprobs")
    usable = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return usable or [said]


def log_of(said: dict[str, Any]) -> float | None:
    found = said.get("logprob")
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return min(float(found), 0.0)


class Vocabulary:
    """The student's tokens by their text."""

    def __init__(self, tokenizer: Any) -> None:
        ids = sorted(tokenizer.get_vocab().values())
        texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        self._ids = {
            text: i for i, text in zip(reversed(ids), reversed(texts), strict=True) if "�" not in text
        }

    def of(self, said: dict[str, Any]) -> int | None:
        return self._ids.get(str(said.get("token")))
