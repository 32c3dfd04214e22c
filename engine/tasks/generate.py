"""Answer an instruction: Alpaca's two templates, as the paper's Algorithm 1 quotes them."""

import re
from collections.abc import Callable
from dataclasses import replace

from engine.tasks.task import Prior, Task, decode_instruction, encode_instruction
from store.errors import UsageError
from store.records import Instruction, Message

NAME = "generate"

WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:"""

WITHOUT_INPUT = """\
Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:"""

# Completion tokens of a strong teacher. Measured with o200k/cl100k on published answers:
# GPT-4 on AlpacaEval's 805 instructions has mean 287 (sigma of the log 1.2), text-davinci-003 on
# Alpaca's 52,002 has 55. The prior lies between; its interval reaches to both. A pilot, or the
# answers that a run has already, replace it by what the teacher really does.
PRIOR = Prior(median=120.0, sigma=1.0, low=0.4, high=1.75)

IMAGINED = " word" * round(PRIOR.median * 1.65)  # the prior's mean in tokens: median x exp(sigma^2/2)

_FIELD = re.compile(r"(\{instruction\}|\{input\})")


def task(prompt: str | None, system: str | None) -> Task:
    """The role. `prompt`: a template of one's own instead of Alpaca's two."""
    return Task(
        NAME,
        decisive=(WITH_INPUT, WITHOUT_INPUT, prompt, system),
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
    with_input = _Template(prompt or WITH_INPUT)
    without = _Template(prompt or WITHOUT_INPUT)
    head: list[Message] = [{"role": "system", "content": system}] if system else []

    def build(item: Instruction) -> list[Message]:
        template = with_input if item.input else without
        return [*head, {"role": "user", "content": template.fill(item)}]

    return build


class _Template:
    """Text with {instruction} and {input}; other braces are left alone, values are not expanded."""

    def __init__(self, text: str) -> None:
        if "{instruction}" not in text:
            raise UsageError("the prompt template has no {instruction}; it must say where it goes")
        self._parts = _FIELD.split(text)

    def fill(self, item: Instruction) -> str:
        values = {"{instruction}": item.instruction, "{input}": item.input}
        return "".join(values.get(part, part) for part in self._parts)
