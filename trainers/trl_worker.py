"""TRL's trainers for preferences, with our rows, order, evaluation, checkpoints and measurements around them.

TRL 1.16 gives the losses. Its data sets hold places only: the collators (preference_batches.py) read our
rows on disk, so that a prompt is written as `train sft` and `serve` write it. A pair's weight scales its
gradient, since TRL takes means over pairs; the training loss that is told is that plain mean. What is held
out is measured prompt by prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import selective_log_softmax

from store.files import whole
from trainers.models import causal_model, lora_config, tokenizer_of
from trainers.preference_batches import Ints, Preferences
from trainers.preference_data import PairRows
from trainers.process import measured
from trainers.rows import IGNORED, Batch, Planned, load, order, steps_of
from trainers.run_folder import Folder
from trainers.trainer import Telling, joined, publish, weights_dtype
from trainers.trl_config import REFERENCED, DpoRecipe


class Scaled(torch.autograd.Function):
    """The same values; gradients times a factor for each row."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(factors)
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (factors,) = context.saved_tensors
        return gradient * factors.to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1)), None


class Weighted:
    """A model as TRL calls it, whose rows have weights: what TRL makes of its output has gradients that are
    scaled by them, whatever the loss. output: the last one."""

    def __init__(self, model: Any, weights: torch.Tensor) -> None:
        self._model, self._weights = model, weights
        self.output: Any = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.output = found = self._model(*given, **named)
        for name in ("log_probs", "logits"):
            values = getattr(found, name, None)
            if values is not None and values.requires_grad:
                setattr(found, name, Scaled.apply(values, self._weights))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Quiet:
    """Of a trainer of TRL: it tells nobody of the run, and writes no card."""

    def _send_telemetry(self) -> None:
        """Nobody is told."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The command writes one, at the end."""


class Driven(Quiet):
    """Of a trainer for preferences: our order of rows, and our evaluation."""

    def __init__(self: Any, preferences: Preferences, planned: Ints, **given: Any) -> None:
        self.preferences, self._order = preferences, planned
        places = Dataset.from_dict({"place": preferences.rows.trained})
        given |= {"train_dataset": places, "eval_dataset": places, "data_collator": self._collated}
        super().__init__(**given)

    def _collated(self, examples: Sequence[dict[str, int]]) -> Batch:
        return self.preferences.collated([example["place"] for example in examples])

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def tokenize_row(self, feature: dict[str, Any], *_: Any) -> dict[str, Any]:
        return feature

    def _get_train_sampler(self, train_dataset: Any = None) -> Planned:
        return Planned(self._order)

    def compute_loss(self: Any, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        loss, _ = self._loss_and_output(model, inputs)
        return loss

    def _loss_and_output(self: Any, model: Any, inputs: Batch) -> tuple[torch.Tensor, Any]:
        weighted = Weighted(model, inputs.pop("weights"))
        loss: torch.Tensor = super().compute_loss(weighted, inputs)  # type: ignore[misc]
        return loss, weighted.output

    def _precompute_ref_logps(self: Any, dataset: Any, name: str, batch_size: int) -> Any:
        """Once, of all pairs, by all processes together; kept in the run's folder."""
        own: Preferences = self.preferences
        file = own.folder.rows(own.recipe.node_rank) / "reference.npy"
        if not file.is_file():
            found = self._reference(own)
            if self.accelerator.is_local_main_process:
                with whole(file) as open_file:
                    np.save(open_file, found)
            self.accelerator.wait_for_everyone()
        own.reference = np.load(file)
        return dataset

    def _reference(self: Any, own: Preferences) -> npt.NDArray[np.float32]:
        size, ranks, rank = own.recipe.rows_at_once, self.args.world_size, self.args.process_index
        by_length = np.argsort(own.rows.lengths, kind="stable").tolist()
        groups = [by_length[at : at + size] for at in range(0, len(by_length), size)]
        model = prepare_deepspeed(self.model, self.accelerator) if self.is_deepspeed_enabled else self.model
        model.eval()
        mine = []
        for first in range(
            0, len(groups), ranks
        ):  # all keep step: under ZeRO-3 each has a part of the weights
            group = groups[min(first + rank, len(groups) - 1)]
            batch = self._prepare_inputs(own.collated(group))
            columns = [c for c in self.compute_ref_log_probs(model, batch) if c is not None]
            if own.recipe.loss == "kto":  # (2P,), the chosen and rejected in turn
                columns = [c for both in columns for c in (both[0::2], both[1::2])]
            mine.append((group, torch.stack(columns, 1).float().cpu().numpy()))
        found = np.zeros((len(own.rows), mine[0][1].shape[1]), np.float32)
        for group, values in gather_object(mine):
            found[group] = values
        return found

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Each held-out prompt weighs the same."""
        own: Preferences = self.preferences
        groups, ranks = list(own.held_out()), self.args.world_size
        total: dict[str, float] = {}
        model = self.model_wrapped
        model.eval()
        for first in range(0, len(groups), ranks):
            place = first + self.args.process_index
            pairs, prompts = groups[min(place, len(groups) - 1)]
            with torch.no_grad(), self._in_bf16():
                figures = self._figures(model, pairs)
            share = prompts if place < len(groups) else 0.0
            for name, value in figures.items():
                total[name] = total.get(name, 0.0) + value * share
            total["prompts"] = total.get("prompts", 0.0) + share
        model.train()
        for stored in (getattr(self, "_metrics", {}), getattr(self, "_stored_metrics", {})):
            for figures in stored.values():
                figures.clear()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        if not groups:
            return {}
        sums = self.accelerator.reduce(torch.tensor([*total.values()], dtype=torch.float64)).tolist()
        held = {name: value / sums[-1] for name, value in zip(total, sums, strict=True) if name != "prompts"}
        if self.is_world_process_zero():
            measured(own.folder.metrics, "held_out", step=self.state.global_step, **held, samples=[])
        return {"eval_loss": held["held_out_loss"]}

    def _in_bf16(self: Any) -> Any:
        wanted = self.args.bf16 and not self.is_deepspeed_enabled
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=wanted)

    def _figures(self: Any, model: Any, pairs: list[int]) -> dict[str, float]:
        """Means over these pairs, of one forward."""
        own: Preferences = self.preferences
        batch = self._prepare_inputs(own.collated(pairs))
        loss, output = self._loss_and_output(model, batch)
        if own.recipe.loss not in REFERENCED:
            labels = torch.cat([batch["chosen_labels"], batch["rejected_labels"]])[:, 1:]
            found = selective_log_softmax(output.logits[:, :-1], labels.clamp(min=0))
            found = found.masked_fill(labels == IGNORED, 0)
        else:
            found = output.log_probs
        logs = found.float().sum(1)
        chosen, rejected = (logs[0::2], logs[1::2]) if own.recipe.loss == "kto" else logs.chunk(2)
        longer, shorter = (torch.tensor(own.rows.answered[own.rows.pairs[pairs]]).to(logs)).unbind(1)
        if own.reference is None:
            chosen, rejected = chosen / longer, rejected / shorter
        else:
            before = torch.tensor(own.reference[pairs, :2]).to(logs)
            chosen, rejected = chosen - before[:, 0], rejected - before[:, 1]
        margin = own.recipe.strength * (chosen - rejected)
        right = (margin > 0).double() + (margin == 0).double() / 2
        figures = {"loss": loss, "accuracy": right, "margin": margin}
        figures |= {"chosen_tokens": longer, "rejected_tokens": shorter}
        return {f"held_out_{name}": value.double().mean().item() for name, value in figures.items()}


class Dpo(Driven, DPOTrainer):
    """DPO and IPO."""


class Kto(Driven, KTOTrainer):
    pass


class Orpo(Driven, ORPOTrainer):
    pass


class SimPo(Driven, CPOTrainer):
    pass


def trainer_of(recipe: DpoRecipe) -> tuple[type, type, dict[str, Any]]:
    """The trainer of a loss, its configuration, and what that says of the loss."""
    beta = {"beta": recipe.strength}
    kept = {"precompute_ref_log_probs": True, "max_length": None}
    match recipe.loss:
        case "kto":  # the order is ours; TRL only asks that nobody else's is taken
            return Kto, KTOConfig, {**beta, **kept, "train_sampling_strategy": "sequential"}
        case "orpo":
            return Orpo, ORPOConfig, beta
        case "simpo":
            gamma = recipe.margin * recipe.strength
            return SimPo, CPOConfig, {**beta, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": gamma}
        case _:
            name = "sigmoid" if recipe.loss == "dpo" else "ipo"
            return Dpo, DPOConfig, {**beta, **kept, "loss_type": [name]}


def train_dpo(job: dict[str, Any]) -> None:
    recipe, tokenizer = DpoRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, rows = Folder(recipe.out), load(PairRows, Path(job["rows"]))
    trained = rows.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(rows.lengths[trained], recipe.batch, steps, recipe.seed)
    kind, configuration, told = trainer_of(recipe)

    checkpoint, args = joined(recipe, job, steps, configuration, **told)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    preferences = Preferences(rows, recipe, tokenizer.pad_token_id, folder)
    telling = Telling(rows.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder)
    loop = kind(
        preferences, planned, model=causal_model(job["model"], weights_dtype(recipe)), args=args,
        processing_class=tokenizer, callbacks=[telling],
        peft_config=None if recipe.lora is None else lora_config(recipe.lora),
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if not telling.stopped:
        publish(loop, recipe, tokenizer, job["template"], folder.result)
