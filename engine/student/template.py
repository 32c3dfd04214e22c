"""How a chat becomes the tokens of a prompt: by the folder's own chat template, else by Alpaca's.

A student that `train sft` taught brings its template in its folder, with what a prompt begins with. Alpaca's
is for folders without one, such as base models.
"""

from collections.abc import Sequence

from engine.chat_api import Refused
from engine.keys import Message
from engine.tasks.generate import WITHOUT_INPUT
from store.special_tokens import TextTokens

END_OF_PROMPT = WITHOUT_INPUT[WITHOUT_INPUT.index("### Response:") :]


def prompt_tokens(messages: Sequence[Message], texts: TextTokens) -> list[int]:
    """Control tokens in messages are read as text. Raises Refused where the template does not take them."""
    told: list[Message] = [{"role": m["role"], "content": texts.plain(m["content"])} for m in messages]
    if not texts.tokenizer.chat_template:
        return _without_end(texts.ids(alpaca(told, texts.tokenizer.eos_token or "")), texts.end)
    from jinja2 import TemplateError

    known = [{**m, "role": "system" if m["role"] == "developer" else m["role"]} for m in told]
    try:
        found = texts.chat_ids(known, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        words = f"the model's chat template does not take these messages: {error}"
        raise Refused(400, words, "messages", "invalid_value") from error
    return found


def alpaca(messages: Sequence[Message], end: str) -> str:
    """Each question in Alpaca's form, unless it is in it already; each answer with its end of sequence."""
    return "".join(_turn(message["role"], message["content"], end) for message in messages)


def _turn(role: str, content: str, end: str) -> str:
    if role == "assistant":
        return content + end
    if role != "user":
        return f"{content}\n\n"
    return content if content.endswith(END_OF_PROMPT) else WITHOUT_INPUT.replace("{instruction}", content)


def _without_end(tokens: list[int], end: int) -> list[int]:
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == end else tokens
