"""`distill train dpo` through the front door: five losses of TRL on our rows, kills, processes, what it
reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("trl", reason="TRL is not installed (requirements/trl.txt)")

import numpy as np

from tests.support import tiny
from tests.support.killing import kill_at_step, leave_traces_of_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NEAR = 1e-4
USUAL = ("--template", "alpaca", "--held-out", 0.2, "--eval-every", 5, "--samples", 4)  # 8 steps


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, preferences, and a plain training on them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("dpo")
    tiny.student(folder / "student")
    tiny.write(folder / "rows.jsonl", mixed(30))
    tiny.train(*given(folder, "plain"), *USUAL, kind="dpo")
    return folder


def mixed(count: int) -> list[dict[str, Any]]:
    """Prompts with three pairs, and some with one, in two shapes."""
    rows = tiny.rankings(count)
    for row in rows[: count // 2 : 2]:
        best, _, worst = (answer["text"] for answer in row.pop("answers"))
        row |= {"chosen": best, "rejected": worst}
    return rows


def given(ground: Path, out: str) -> tuple[Path, Path, Path]:
    return ground / "rows.jsonl", ground / "student", ground / out


def undisturbed(ground: Path, loss: str) -> str:
    """The folder of a training by this loss that nothing disturbed; made once."""
    if loss == "dpo":
        return "plain"
    if not (ground / loss).exists():
        tiny.train(*given(ground, loss), *USUAL, "--loss", loss, kind="dpo")
    return loss


def held(ground: Path, out: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (ground / out / "metrics.jsonl").read_bytes().splitlines())
    return [line for line in lines if line["kind"] == "held_out"]


def same_losses(ground: Path, out: str, near: float = NEAR) -> None:
    expected, found = tiny.measured(ground / "plain"), tiny.measured(ground / out)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values[: len(found[key])], rel=near), key


def test_it_learns_the_preference_and_says_how_far_it_has_moved(ground: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    measured = held(ground, "plain")
    assert measured[0]["held_out_loss"] == pytest.approx(np.log(2), abs=1e-6)  # it is its own reference
    assert measured[0]["held_out_accuracy"] == 0.5
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    assert measured[-1]["held_out_accuracy"] > 0.9
    out = ground / "plain"
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"] == measured[-1]["held_out_accuracy"]
    assert report["kl"] > 0
    assert report["answers"] == 4
    card = (out / "README.md").read_text()
    assert "| KL to the model as it was (nats an answer, on its own answers) |" in card
    assert "| length of rejected answers |" in card
    assert not (out / "training" / "checkpoints").exists()
    AutoModelForCausalLM.from_pretrained(out)
    prompt = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "Say sea."}], tokenize=False
    )
    assert prompt.endswith("### Instruction:\nSay sea.\n\n### Response:")


@pytest.mark.parametrize("loss", ["ipo", "kto", "orpo", "simpo"])
def test_each_loss_learns(ground: Path, loss: str) -> None:
    measured = held(ground, undisturbed(ground, loss))
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    assert measured[-1]["held_out_accuracy"] > 0.9
    assert measured[-1]["held_out_margin"] > measured[0]["held_out_margin"]
    assert f"- {loss}\n" in (ground / loss / "README.md").read_text()


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(ground: Path, loss: str) -> None:
    out, words = f"killed-{loss}", (*USUAL, "--loss", loss)
    kill_at_step(tiny.words(*given(ground, out), *words, kind="dpo"), ground / out, 5, deaf=True)
    leave_traces_of_a_kill(ground / out / "training")
    kept = np.load(ground / out / "training" / "rows-0" / "reference.npy")
    assert kept.shape[1] == {"dpo": 2, "kto": 4}[loss]
    said = tiny.train(*given(ground, out), *words, "--resume", kind="dpo")
    assert "it was not finished" in said
    assert "continuing from step 4" in said
    plain = undisturbed(ground, loss)
    mine = (ground / out / "model.safetensors").read_bytes()
    assert mine == (ground / plain / "model.safetensors").read_bytes()


def test_other_settings_are_refused_by_a_resume(ground: Path) -> None:
    out = "changed"
    kill_at_step(tiny.words(*given(ground, out), *USUAL, kind="dpo"), ground / out, 3, deaf=True)
    said = tiny.train(*given(ground, out), *USUAL, "--beta", 0.3, "--resume", kind="dpo", code=2)
    assert "beta: None -> 0.3" in said


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("small", ("--micro-batch", 1)),
        ("zero2", ("--zero", 2, "--nproc", 2)),
        ("zero3", ("--zero", 3, "--nproc", 2)),
    ],
    ids=["in smaller pieces", "ZeRO-2, two processes", "ZeRO-3, two processes"],
)
def test_pieces_and_processes_change_no_loss(ground: Path, out: str, flags: tuple[object, ...]) -> None:
    tiny.train(*given(ground, out), *USUAL, *flags, kind="dpo")
    same_losses(ground, out, near=1e-3)


def test_lora_learns_and_is_merged(ground: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny.train(*given(ground, "lora"), *USUAL, "--lora", 4, "--lr", 1e-2, kind="dpo")
    measured = held(ground, "lora")
    assert measured[0]["held_out_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    names = set(AutoModelForCausalLM.from_pretrained(ground / "lora").state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(ground / "student").state_dict())


def prepared_rows(ground: Path, out: Path, **told: Any) -> Any:
    from trainers.models import tokenizer_of
    from trainers.preference_data import prepared
    from trainers.trl_config import DpoRecipe

    data, student, _ = given(ground, "")
    usual = {"data": data, "model": str(student), "out": out, "template": "alpaca", "held_out": 0.2}
    recipe, tokenizer = DpoRecipe(**(usual | told)), tokenizer_of(str(student))
    return recipe, tokenizer, *prepared(recipe, tokenizer)


def test_each_prompt_weighs_the_same_whatever_its_pairs(ground: Path, tmp_path: Path) -> None:
    _, _, rows, counts, groups = prepared_rows(ground, tmp_path)
    weights, of = rows.weights[rows.trained], rows.prompts[rows.trained]
    assert {*np.bincount(of)[of]} == {1, 3}
    each = np.bincount(of, weights)
    assert each[each > 0] == pytest.approx(weights.sum() / len(np.unique(of)), rel=1e-5)
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    assert counts.held_prompts == len(groups) == 6
    assert not {*of} & {*rows.prompts[rows.held_out]}


def test_a_weight_scales_the_gradient_of_its_pair(ground: Path, tmp_path: Path) -> None:
    """The gradient of a micro batch is that of the weighted mean of TRL's losses of each pair alone."""
    import torch

    from trainers.models import causal_model
    from trainers.preference_batches import Preferences
    from trainers.rows import save
    from trainers.run_folder import Folder
    from trainers.trl_worker import trainer_of

    recipe, tokenizer, rows, _, _ = prepared_rows(ground, tmp_path)
    tokenizer.pad_token = tokenizer.unk_token
    folder = Folder(tmp_path / "run")
    save(rows, folder.rows(0))
    preferences = Preferences(rows, recipe, tokenizer.pad_token_id, folder)
    kind, configuration, told = trainer_of(recipe)
    args = configuration(
        output_dir=str(tmp_path / "x"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        remove_unused_columns=False, **told,
    )  # fmt: skip
    model = causal_model(recipe.model, torch.float32)
    loop = kind(preferences, rows.trained[None], model=model, args=args, processing_class=tokenizer)
    of_all = rows.weights[rows.trained]
    pairs = [int(rows.trained[place]) for place in (of_all.argmin(), of_all.argmax())]
    weights = torch.tensor(rows.weights[pairs])
    assert weights[0] != weights[1]

    def gradient(loss: Any) -> Any:
        loop.model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in loop.model.parameters()])

    def alone(pair: int) -> Any:
        return loop.compute_loss(loop.model, {**preferences.collated([pair]), "weights": torch.ones(2)})

    mine = gradient(loop.compute_loss(loop.model, preferences.collated(pairs)))
    expected = gradient(sum(w * alone(pair) for w, pair in zip(weights, pairs, strict=True)) / 2)
    assert mine.norm() > 0
    assert torch.allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "flags", "told"),
    [
        ([{"instruction": "a", "output": "b"}], (), "no comparison in"),
        (None, ("--max-length", 20), "prompts have a pair of answers within --max-length 20"),
        (None, ("--loss", "kto", "--micro-batch", 1), "kto takes its KL over a micro batch"),
        (None, ("--loss", "ppo"), "--loss"),
        (None, ("--beta", 0), "--beta"),
    ],
    ids=["no pairs", "all too long", "kto of single rows", "an unknown loss", "no beta"],
)
def test_bad_input_is_refused(
    ground: Path, tmp_path: Path, rows: Any, flags: tuple[object, ...], told: str
) -> None:
    data = tiny.write(tmp_path / "rows.jsonl", rows) if rows else ground / "rows.jsonl"
    said = tiny.train(data, ground / "student", tmp_path / "out", *flags, kind="dpo", code=2)
    assert told in said


def test_answers_that_are_too_long_are_left_out_or_cut_and_counted(ground: Path, tmp_path: Path) -> None:
    long = {"prompt": "Say sea.", "chosen": "a" * 400, "rejected": "b"}
    data = tiny.write(tmp_path / "rows.jsonl", [long, *mixed(9)])
    told: dict[str, Any] = {"data": data, "max_length": 300}
    _, _, _, counts, _ = prepared_rows(ground, tmp_path, **told)
    assert (counts.too_long, counts.prompts) == (1, 9)
    _, _, rows, counts, _ = prepared_rows(ground, tmp_path, **told, too_long="cut")
    assert (counts.cut, counts.prompts) == (1, 10)
    asked, answer = rows.answer(int(rows.pairs[0, 0]))
    assert len(asked) + len(answer) == 300
    assert answer[-1] != 1  # it teaches no end of sequence
