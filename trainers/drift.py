"""How far a model has moved from the one that it was made from: its own answers to held-out prompts.

Both models answer, at temperature 1. The KL is taken on the answers of the trained one, exactly over the
vocabulary at each token (a mean over answers of the sum over their tokens), in nats.
"""

from collections.abc import Sequence
from typing import Any

import torch

from store.errors import UsageError
from store.records import Instruction
from store.student import TextTokens
from trainers.config import Training
from trainers.encoding import Template, encode, prompt_length
from trainers.models import causal_model, tokenizer_of
from trainers.preflight import Setup

ANSWERS_AT_ONCE = 16
MOST_TOKENS = 256  # of an answer


def drift_on(setup: Setup, recipe: Training, template: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """The trained model, which lies in the folder's `result`, beside the one that it was."""
    device = torch.device("cuda" if setup.machine.gpus else "cpu")
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    tokenizer = tokenizer_of(setup.model)
    asked = [prompt_tokens(prompt, template, TextTokens(tokenizer)) for prompt in prompts]
    room = min(MOST_TOKENS, recipe.max_length - min(map(len, asked)))
    asked = [tokens for tokens in asked if len(tokens) + max(room, 1) <= longest(setup.config)]
    found: dict[str, Any] = {"answers": len(asked)}
    if not asked:
        return {}
    torch.manual_seed(recipe.seed)
    before = causal_model(setup.model, dtype).eval().to(device)
    drawn = answers_of(before, asked, tokenizer, max(room, 1))
    found |= {"before_tokens": mean_length(drawn), "unfinished_before": unfinished(drawn, tokenizer)}
    torch.manual_seed(recipe.seed)
    policy = causal_model(str(setup.folder.result), dtype).eval().to(device)
    drawn = answers_of(policy, asked, tokenizer, max(room, 1))
    found |= {"policy_tokens": mean_length(drawn), "unfinished": unfinished(drawn, tokenizer)}
    total = sum(divergence(policy, before, *pair, device) for pair in zip(asked, drawn, strict=True))
    found |= {"kl": total / len(asked), "kl_token": total / max(1, sum(map(len, drawn)))}
    return found


def prompt_tokens(prompt: str, template: Template, texts: TextTokens) -> list[int]:
    """A question as the model is asked it."""
    found = encode(Instruction("", prompt, "", "."), template, texts)
    if isinstance(found, str):
        raise UsageError(f"--template {template}: {found}; try --template alpaca")
    return found[0][: prompt_length(found[1])]


def longest(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 10**9)


def answers_of(model: Any, asked: Sequence[list[int]], tokenizer: Any, most: int) -> list[list[int]]:
    """One answer to each, with its end of sequence where it came."""
    found: list[list[int]] = []
    for first in range(0, len(asked), ANSWERS_AT_ONCE):
        group = asked[first : first + ANSWERS_AT_ONCE]
        width = max(map(len, group))
        ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(one)) + one for one in group])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in group])
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=most,
                do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        for row in written[:, width:].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            found.append(row[:end])
    return found


def mean_length(answers: Sequence[list[int]]) -> float:
    return sum(map(len, answers)) / len(answers)


def unfinished(answers: Sequence[list[int]], tokenizer: Any) -> int:
    return sum(not answer or answer[-1] != tokenizer.eos_token_id for answer in answers)


def divergence(policy: Any, before: Any, asked: list[int], answer: list[int], device: Any) -> float:
    """KL(policy‖before), summed over the tokens of an answer."""
    ids = torch.tensor([asked + answer], device=device)
    place = slice(len(asked) - 1, len(asked) + len(answer) - 1)
    with torch.inference_mode():
        mine, other = (model(ids).logits[0, place].float().log_softmax(-1) for model in (policy, before))
        return float((mine.exp() * (mine - other)).sum())
