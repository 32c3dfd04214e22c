"""How a row becomes the text that a student reads: Alpaca's two templates, or its own chat template.

The words are those of engine/tasks/generate.py (a test compares them): a student is asked as its
teacher was.
"""

import re
from typing import Any

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

_FIELD = re.compile(r"(\{instruction\}|\{input\})")


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """Alpaca's prompt; braces in the values are left alone."""
    values = {"{instruction}": instruction, "{input}": input}
    return "".join(values.get(part, part) for part in _FIELD.split(WITH_INPUT if input else WITHOUT_INPUT))


def _as_jinja() -> str:
    before, after = WITHOUT_INPUT.split("{instruction}")
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
        "{%- elif message['role'] == 'user' and not message['content'].endswith('### Response:') -%}"
        "{{ " + repr(before) + " + message['content'] + " + repr(after) + " }}"
        "{%- elif message['role'] == 'user' -%}{{ message['content'] }}"
        "{%- else -%}{{ message['content'] + '\\n\\n' }}{%- endif -%}"
        "{%- endfor -%}"
    )


# Of a student trained with Alpaca's templates, so that any chat server asks it as it was taught. A message
# that is in the template's form already, as `distill generate` sends it, goes through as it is.
ALPACA_CHAT_TEMPLATE = _as_jinja()


def alpaca_chat_template(tokenizer: Any) -> str:
    """It begins as the prompts of the training began: many tokenizers put a beginning-of-sequence before a
    text, but none before a chat, whose template must write it."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{- bos_token -}}" + ALPACA_CHAT_TEMPLATE if begins else ALPACA_CHAT_TEMPLATE
