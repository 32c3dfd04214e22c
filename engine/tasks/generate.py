"""Answer an instruction: Alpaca's two templates, as the paper's Algorithm 1 quotes them."""

from collections.abc import Callable
from dataclasses import replace

from engine.tasks.task import Prior, Task, decode_instruction, encode_instruction
from store.errors import UsageError
from store.records import (
    ALPACA_WITH_INPUT,
    ALPACA_WITHOUT_INPUT,
    Instruction,
    Message,
    filled,
    template_parts,
)

NAME = "generate"

# Completion tokens of a strong teacher. Measured with o200k/cl100k on published answers:
# GPT-4 on AlpacaEval's 805 instructions has mean 287 (sigma of the log 1.2), text-davinci-003 on
# Alpaca's 52,002 has 55. The prior lies between; its interval reaches to both. A pilot, or the
# answers that a run has already, replace it by what the teacher really does.
PRIOR = Prior(median=120.0, sigma=1.0, low=0.4, high=1.75)

IMAGINED = " word" * round(PRIOR.median * 1.65)  # the prior's mean in tokens: median x exp(sigma^2/2)


def task(prompt: str | None, system: str | None) -> Task:
    """The role. `prompt`: a template of one's own instead of Alpaca's two."""
    return Task(
        NAME,
        decisive=(ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, prompt, system),
        build=builder(prompt, system),
        encode=encode_instruction,
        decode=decode_instruction,
        record=lambda item, text: replace(item, output=text),
        prior=PRIOR,
        imagined=imagined,
    )


def imagined(item: Instruction, mark: str) -> Instruction:
    """With an answer of the usual length, which no other request has: equal texts would be asked about
    once."""
    return replace(item, output=f"{mark}{IMAGINED}")


def builder(prompt: str | None, system: str | None) -> Callable[[Instruction], list[Message]]:
    """`build(item) -> messages`. `prompt`: a template of one's own instead of Alpaca's two."""
    if prompt and "{instruction}" not in prompt:
        raise UsageError("the prompt template has no {instruction}; it must say where it goes")
    with_input = template_parts(prompt or ALPACA_WITH_INPUT)
    without = template_parts(prompt or ALPACA_WITHOUT_INPUT)
    head: list[Message] = [{"role": "system", "content": system}] if system else []

    def build(item: Instruction) -> list[Message]:
        parts = with_input if item.input else without
        return [*head, {"role": "user", "content": filled(parts, item.instruction, item.input)}]

    return build
