"""`distill train …` and `rank`: read flags and the environment, call one function.

The flags that all trainings have are declared once. Imports only what help needs: no torch, no pydantic.
"""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from store.extras import needs, require

SMOLLM2 = "smollm2"  # the embedded model, and the extra that brings it
WHAT, HOW, WHERE, SEEN = "What", "How it learns", "Where it runs", "As it goes"


def _option(*names: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


def training_options(
    data: Annotated[
        Path | None, _option("--data", text="rows to learn from", panel=WHAT, metavar="FILE")
    ] = None,
    model: Annotated[
        str | None, _option("--model", text="a folder, a hub name, or smollm2", panel=WHAT, metavar="M")
    ] = None,
    out: Annotated[Path | None, _option("--out", text="a new folder", panel=WHAT, metavar="DIR")] = None,
    limit: Annotated[
        int | None, _option("--limit", text="only the first N rows", panel=WHAT, metavar="N")
    ] = None,
    held_out: Annotated[
        float | None, _option("--held-out", text="share of rows that is only measured on [0.02]", panel=WHAT)
    ] = None,
    epochs: Annotated[float | None, _option("--epochs", text="passes over the data [3]", panel=HOW)] = None,
    batch: Annotated[
        int | None, _option("--batch", text="rows a step, of all processes [128]", panel=HOW)
    ] = None,
    micro_batch: Annotated[
        int | None, _option("--micro-batch", text="rows at once in a process [4, or what divides]", panel=HOW)
    ] = None,
    lr: Annotated[float | None, _option("--lr", text="learning rate [2e-5]", panel=HOW)] = None,
    schedule: Annotated[
        str | None, _option("--schedule", text="cosine, linear or constant [cosine]", panel=HOW, metavar="S")
    ] = None,
    warmup: Annotated[float | None, _option("--warmup", text="share of the steps [0.03]", panel=HOW)] = None,
    weight_decay: Annotated[float | None, _option("--weight-decay", text="[0]", panel=HOW)] = None,
    clip: Annotated[
        float | None, _option("--clip", text="largest norm of the gradient [1]", panel=HOW)
    ] = None,
    max_length: Annotated[
        int | None, _option("--max-length", text="tokens of a row, prompt and response [512]", panel=HOW)
    ] = None,
    precision: Annotated[
        str | None,
        _option(
            "--precision",
            text="bf16 or fp32 [bf16; on a CPU the faster one]",
            panel=HOW,
            metavar="P",
        ),
    ] = None,
    lora: Annotated[
        int | None,
        _option(
            "--lora", text="learn thin matrices of rank R only, merged in the end", panel=HOW, metavar="R"
        ),
    ] = None,
    recompute: Annotated[
        bool | None, _option("--recompute", text="activations again instead of keeping them", panel=HOW)
    ] = None,
    seed: Annotated[int | None, _option("--seed", text="[42]", panel=HOW)] = None,
    zero: Annotated[
        int | None,
        _option("--zero", text="DeepSpeed's ZeRO stage 0-3 [2 for several processes]", panel=WHERE),
    ] = None,
    offload: Annotated[
        bool | None, _option("--offload", text="optimizer (ZeRO-3: weights too) in RAM", panel=WHERE)
    ] = None,
    deepspeed: Annotated[
        Path | None,
        _option("--deepspeed", text="a DeepSpeed configuration of your own", panel=WHERE, metavar="FILE"),
    ] = None,
    nproc: Annotated[
        int | None, _option("--nproc", text="processes on this machine [1]", panel=WHERE)
    ] = None,
    nnodes: Annotated[int | None, _option("--nnodes", text="machines [1]", panel=WHERE)] = None,
    node_rank: Annotated[
        int | None, _option("--node-rank", text="which of them this is, from 0", panel=WHERE)
    ] = None,
    master: Annotated[
        str | None, _option("--master", text="where machine 0 listens", panel=WHERE, metavar="HOST:PORT")
    ] = None,
    save_every: Annotated[
        int | None, _option("--save-every", text="steps between checkpoints [a tenth of all]", panel=SEEN)
    ] = None,
    eval_every: Annotated[
        int | None, _option("--eval-every", text="steps between held-out losses [a tenth of all]", panel=SEEN)
    ] = None,
    keep: Annotated[int | None, _option("--keep", text="checkpoints kept on the way [2]", panel=SEEN)] = None,
    tensorboard: Annotated[
        bool | None, _option("--tensorboard", text="also write DIR/training/tensorboard", panel=SEEN)
    ] = None,
) -> None:
    """Only a signature."""


def with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets one more argument, `options`: all of these by name, None where not given."""
    return telling({})(command)


def telling(helps: Mapping[str, str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same for a command whose help says other words, by the option's name."""
    lent = {name: _told(kind, helps.get(name)) for name, kind in training_options.__annotations__.items()}
    return lambda command: _with(command, {name: kind for name, kind in lent.items() if name != "return"})


def _told(kind: Any, words: str | None) -> Any:
    if words is None:
        return kind
    of, option = get_args(kind)
    changed = copy.copy(option)
    changed.help = words
    return Annotated[of, changed]


def _with(command: Callable[..., None], kinds: Mapping[str, Any]) -> Callable[..., None]:
    own = inspect.signature(command)
    lent = inspect.signature(training_options)
    mine = [p for name, p in own.parameters.items() if name != "options"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        options = {name: values.pop(name) for name in lent.parameters}
        command(**values, options=options)

    shown: Any = wrapper
    both = [*mine, *(p.replace(annotation=kinds[name]) for name, p in lent.parameters.items())]
    shown.__signature__ = own.replace(
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in both]
    )
    kept = {name: kind for name, kind in command.__annotations__.items() if name != "options"}
    wrapper.__annotations__ = {**kept, **kinds}
    del shown.__wrapped__
    return wrapper


app = typer.Typer(name="train", help="Train a student or a reward model.", no_args_is_help=True)

RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="TOML with the flags' names; flags win")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="say nothing when all is well")]
RewardOption = Annotated[Path, typer.Option("--reward", metavar="DIR", help="a folder of `train reward`")]
# Where its defaults or units are others than a student's; what they are taken from: RewardRecipe.
REWARD_HELP = {
    "data": "comparisons: pairs, or answers with scores",
    "held_out": "share of prompts that is only measured on [0.1]",
    "epochs": "passes over the data [2]",
    "batch": "prompts a step, of all processes [16]",
    "micro_batch": "prompts at once in a process [as many as have 8 answers]",
    "lr": "learning rate [5e-5]",
    "warmup": "share of the steps [0.1]",
    "max_length": "tokens of a prompt with one answer [512]",
}


@app.callback()
def train() -> None:
    """Train a student or a reward model."""


@app.command()
@needs("train")
@with_training_options
def sft(
    recipe: RecipeOption = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="T", help="alpaca or chat [by the rows]", rich_help_panel=WHAT),
    ] = None,
    reasoning: Annotated[
        str | None,
        typer.Option(
            "--reasoning", metavar="W", help="learn or drop the thinking in rows [learn]", rich_help_panel=HOW
        ),
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            "--too-long", metavar="W", help="drop or cut rows over the length [drop]", rich_help_panel=HOW
        ),
    ] = None,
    packing: Annotated[
        str | None,
        typer.Option("--packing", metavar="P", help="auto, on or off [auto]", rich_help_panel=HOW),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="held-out prompts to answer [3]", rich_help_panel=SEEN),
    ] = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Fine-tune a student on instructions and answers."""
    from trainers.config import SftRecipe, recipe_from

    own = {"template": template, "reasoning": reasoning, "too_long": too_long, "packing": packing}
    told = recipe_from(SftRecipe, options | own | {"samples": samples}, recipe)
    _require_training(told.model)
    from trainers.sft import run_sft

    raise typer.Exit(run_sft(told, resume, quiet, os.environ))


@app.command()
@needs("train")
@telling(REWARD_HELP)
def reward(
    recipe: RecipeOption = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="T", help="alpaca or chat [by the model]", rich_help_panel=WHAT),
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            "--too-long", metavar="W", help="drop or cut answers over the length [cut]", rich_help_panel=HOW
        ),
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(
            "--answers", metavar="K", help="most answers of a prompt at once [9]", rich_help_panel=HOW
        ),
    ] = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a reward model on comparisons of answers."""
    from trainers.config import RewardRecipe, recipe_from

    own = {"template": template, "too_long": too_long, "answers": answers}
    told = recipe_from(RewardRecipe, options | own, recipe)
    _require_training(told.model)
    from trainers.reward import run_reward

    raise typer.Exit(run_reward(told, resume, quiet, os.environ))


@needs("train", purpose="ranking answers")
def rank(
    reward: RewardOption,
    candidates: Annotated[
        Path, typer.Option("--candidates", metavar="FILE", help="rows of id, prompt and candidates")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the same with scores and order")],
    split: Annotated[
        Path | None,
        typer.Option("--split", metavar="DIR", help="also rank1.jsonl, rank2.jsonl, ...: answers for judge"),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score candidates with a reward model and put them in order, the best first."""
    quieten()
    from trainers.rank import run_rank

    raise typer.Exit(run_rank(reward, candidates, out, quiet, split))


def _require_training(model: str) -> None:
    """After the flags are known to be right, for what is missing may be gigabytes."""
    quieten()
    require("train", *([SMOLLM2] if model == SMOLLM2 else []), purpose="training a model")


def quieten() -> None:
    """Libraries talk while they load; what matters is said by us, or is in the log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging

    # DeepSpeed writes to standard output, as soon as transformers finds it, that there is no GPU. It sets the
    # logger's level itself.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
