"""One process of `train rl` (RLOO, GRPO), and of `train distill --on-policy` (GKD): TRL's trainers.

Prompts are asked as `train sft` writes them. Rewards are read by the reward model as `rank` reads them.
Each step's rewards, lengths and KL go to metrics.jsonl; so do the answers of this process, as points of
reward and length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from store.errors import UsageError
from trainers.models import causal_model, lora_config, tokenizer_of
from trainers.process import measured
from trainers.reward_model import Scorer, scored
from trainers.rl import steps
from trainers.rl_prompts import Prompts, Scores, function_of, is_function
from trainers.rows import IGNORED, Batch, Planned, TokenRows, order, steps_of
from trainers.run_folder import Folder
from trainers.trainer import Telling, joined, publish, weights_dtype
from trainers.trl_config import DistillRecipe, RlRecipe
from trainers.trl_worker import Quiet


def scores_of(scorer: Scorer) -> Scores:
    """A reward model as a function."""

    def score(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        read = [scorer.readable(question) for question in zip(prompts, answers, strict=True)]
        found = [0.0] * len(read)
        for places, rewards in scored(scorer, read):
            for place, reward in zip(places, rewards, strict=True):
                found[place] = reward
        return found

    return score


class Reward:
    """What answers are worth, as TRL asks it. recent: (tokens, reward) since they were last taken."""

    __name__ = "reward"

    def __init__(self, name: str, penalty: float) -> None:
        self._name, self._penalty = name, penalty
        self._function = function_of(name) if is_function(name) else scores_of(Scorer(Path(name)))
        self.recent: list[tuple[int, float]] = []

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        given = list(self._function(prompts, completions))
        if len(given) != len(prompts) or not all(isinstance(one, int | float) for one in given):
            raise UsageError(f"--reward {self._name}: it must return a number for each answer")
        found = [float(r) - self._penalty * len(i) for r, i in zip(given, completion_ids, strict=True)]
        self.recent += [(len(i), round(r, 4)) for r, i in zip(found, completion_ids, strict=True)]
        return found


class Answering(Quiet):
    """Of RLOO's and GRPO's trainers: prompts as tokens, and what is held out."""

    def __init__(self: Any, recipe: RlRecipe, prompts: Prompts, folder: Folder, **given: Any) -> None:
        self._ids = dict(zip(prompts.texts, prompts.ids, strict=True))
        held = [prompts.texts[n] for n in prompts.held_out[: recipe.samples]]
        self._recipe, self._held, self._folder = recipe, [{"prompt": text} for text in held], folder
        asked = Dataset.from_dict({"prompt": [prompts.texts[n] for n in prompts.trained]})
        given |= {"train_dataset": asked, "eval_dataset": asked}
        super().__init__(**given)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self._ids[prompt] for prompt in prompts], None, {}

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """An answer to each prompt that is held out; the same number in each process."""
        held, ranks, size = self._held, self.args.world_size, self._recipe.rows_at_once
        each = -(-len(held) // ranks)
        mine = [held[(self.args.process_index * each + n) % len(held)] for n in range(each)] if held else []
        self.model.eval()
        with torch.random.fork_rng():  # the same draws each time, and none that the training would have
            torch.manual_seed(self._recipe.seed)
            for first in range(0, each, size):
                with torch.no_grad():
                    answered = self._prepare_inputs(mine[first : first + size])
                    if self._recipe.method == "grpo":  # which measures the KL in its loss
                        self.compute_loss(self.model, answered)
        figures = {name: float(np.mean(values)) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        self.model.train()
        self.reward_funcs[0].recent.clear()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        if not held:
            return {}
        found: dict[str, Any] = {
            "held_out_loss": -figures["reward"],
            "held_out_reward": figures["reward"],
            "held_out_tokens": figures["completions/mean_length"],
            "held_out_unfinished": figures["completions/clipped_ratio"],
            "held_out_kl": figures.get("kl"),
        }
        if self.is_world_process_zero():
            measured(self._folder.metrics, "held_out", step=self.state.global_step, **found, samples=[])
        return {"eval_loss": found["held_out_loss"]}


class Rloo(Answering, RLOOTrainer):
    pass


class Grpo(Answering, GRPOTrainer):
    pass


class TellingRewards(Telling):
    """Tells each step's reward, KL and lengths. The loss is minus the reward: TRL's own says nothing."""

    def __init__(self, reward: Reward, *given: Any) -> None:
        super().__init__(*given)
        self._reward, self._seen = reward, 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **more: Any) -> None:
        if "reward" not in logs or "loss" not in logs:
            return
        self._tokens[state.global_step - 1] = logs["num_tokens"] - self._seen
        self._seen = logs["num_tokens"]
        self.also = {
            "reward": logs["reward"], "reward_std": logs.get("reward_std"), "kl": logs.get("kl"),
            "answer_tokens": logs["completions/mean_length"], "entropy": logs.get("entropy"),
            "unfinished": logs["completions/clipped_ratio"], "answers": self._reward.recent[:],
        }  # fmt: skip
        self._reward.recent.clear()
        super().on_log(args, state, control, {**logs, "loss": -logs["reward"]}, **more)


def train_rl(job: dict[str, Any]) -> None:
    recipe, tokenizer = RlRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, prompts = Folder(recipe.out), Prompts.load(Path(job["rows"]))
    reward = Reward(recipe.reward, recipe.length_penalty)  # before ZeRO-3, which would share its weights out
    rows, count = len(prompts.trained) * recipe.group, steps(recipe, prompts)
    told: dict[str, Any] = {
        "num_generations": recipe.group, "num_generations_eval": 1, "beta": recipe.beta,
        "max_completion_length": recipe.answer_tokens, "temperature": recipe.temperature,
        "disable_dropout": True, "per_device_eval_batch_size": recipe.rows_at_once,
    }  # fmt: skip
    kind, configuration = (Rloo, RLOOConfig) if recipe.method == "rloo" else (Grpo, GRPOConfig)
    checkpoint, args = joined(recipe, job, count, configuration, **told)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    telling = TellingRewards(reward, np.zeros(count, np.int64), rows, recipe.batch, folder)
    loop = kind(
        recipe, prompts, folder, model=causal_model(job["model"], weights_dtype(recipe)), args=args,
        reward_funcs=reward, processing_class=tokenizer, callbacks=[telling],
        peft_config=None if recipe.lora is None else lora_config(recipe.lora),
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if not telling.stopped:
        publish(loop, recipe, tokenizer, job["template"], folder.result)


class Gkd(Quiet, GKDTrainer):
    """On-policy distillation: the student's own answers, judged token by token by a teacher that is there."""

    def __init__(self: Any, rows: TokenRows, planned: Any, folder: Folder, pad: int, **given: Any) -> None:
        self._rows, self._order, self._folder, self._pad = rows, planned, folder, pad
        places = Dataset.from_dict({"place": rows.trained})
        given |= {"train_dataset": places, "eval_dataset": places, "data_collator": self._collated}
        super().__init__(**given)

    def _get_train_sampler(self, train_dataset: Any = None) -> Planned:
        return Planned(self._order)

    def _collated(self, examples: Sequence[dict[str, int]]) -> Batch:
        return self.batch([example["place"] for example in examples])

    def batch(self, places: Sequence[int]) -> Batch:
        """Rows filled on the right, and their prompts alone, filled on the left."""
        rows = [self._rows.row(place) for place in places]
        tokens = [torch.tensor(np.array(ids, np.int64)) for ids, _ in rows]
        learn = [torch.tensor(np.array(mask)) for _, mask in rows]
        asked = [own[: int(mask.long().argmax())] for own, mask in zip(tokens, learn, strict=True)]

        def fill(parts: list[torch.Tensor], value: int, side: str = "right") -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(
                parts, batch_first=True, padding_value=value, padding_side=side
            )

        labels = [own.masked_fill(~mask, IGNORED) for own, mask in zip(tokens, learn, strict=True)]
        return {
            "input_ids": fill(tokens, self._pad),
            "attention_mask": fill([torch.ones_like(one) for one in tokens], 0),
            "labels": fill(labels, IGNORED),
            "prompts": fill(asked, self._pad, "left"),
            "prompt_attention_mask": fill([torch.ones_like(one) for one in asked], 0, "left"),
        }

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """The divergence on the answers of held-out rows, a token."""
        held, ranks, size = self._rows.held_out.tolist(), self.args.world_size, self.args.train_batch_size
        groups = [held[at : at + size] for at in range(0, len(held), size)]
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model_wrapped.eval()
        for first in range(0, len(groups), ranks):
            place = first + self.args.process_index
            batch = self._prepare_inputs(self.batch(groups[min(place, len(groups) - 1)]))
            with torch.no_grad(), self.accelerator.autocast():
                loss = self.compute_loss(self.model_wrapped, batch, num_items_in_batch=1)
            if place < len(groups):
                total += torch.tensor([loss.item(), float((batch["labels"][:, 1:] != IGNORED).sum())]).to(
                    total
                )
        self.model_wrapped.train()
        total = self.accelerator.reduce(total)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        if not groups:
            return {}
        held_loss = (total[0] / total[1]).item()
        if self.is_world_process_zero():
            step = self.state.global_step
            measured(self._folder.metrics, "held_out", step=step, held_out_loss=held_loss, samples=[])
        return {"eval_loss": held_loss}


def train_gkd(
    job: dict[str, Any], recipe: DistillRecipe, tokenizer: Any, rows: TokenRows, folder: Folder
) -> None:
    trained = rows.trained
    count = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(rows.lengths[trained], recipe.batch, count, recipe.seed)
    dtype = weights_dtype(recipe)
    teacher = causal_model(job["teacher"], dtype)  # whole in each process
    told: dict[str, Any] = {
        "lmbda": recipe.on_policy, "beta": recipe.divergence, "temperature": recipe.temperature,
        "max_new_tokens": recipe.answer_tokens, "max_length": None, "packing": False,
    }  # fmt: skip
    checkpoint, args = joined(recipe, job, count, GKDConfig, **told)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    telling = Telling(rows.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder)
    loop = Gkd(
        rows, planned, folder, tokenizer.pad_token_id, model=causal_model(job["model"], dtype),
        teacher_model=teacher, args=args, processing_class=tokenizer, callbacks=[telling],
        peft_config=None if recipe.lora is None else lora_config(recipe.lora),
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if not telling.stopped:
        publish(loop, recipe, tokenizer, job["template"], folder.result)
