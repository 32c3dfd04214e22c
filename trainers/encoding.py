"""A row as tokens, and which of them are learnt: the responses with their end, never the prompts.

A row teaches what the student will be asked to write: the response and its end-of-sequence, after exactly
the tokens of its prompt. The prompt is the student's own chat template or one of Alpaca's two. Thinking is
learnt inside the marks of the template. Control tokens in texts are read as text (store/student.py).
"""

from collections.abc import Iterable
from typing import Any, Literal

from store.records import ALPACA_WITHOUT_INPUT, Instruction, alpaca_prompt
from store.student import TextTokens

# Of a student trained with Alpaca's templates, so that any chat server asks it as it was taught. A message
# that is in the template's form already, as `distill generate` sends it, goes through as it is.
_BEFORE, _AFTER = ALPACA_WITHOUT_INPUT.split("{instruction}")
ALPACA_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- elif message['role'] == 'user' and not message['content'].endswith('### Response:') -%}"
    "{{ " + repr(_BEFORE) + " + message['content'] + " + repr(_AFTER) + " }}"
    "{%- elif message['role'] == 'user' -%}{{ message['content'] }}"
    "{%- else -%}{{ message['content'] + '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
)


def alpaca_chat_template(tokenizer: Any) -> str:
    """It begins as the prompts of the training began: many tokenizers put a beginning-of-sequence before a
    text, but none before a chat, whose template must write it."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{- bos_token -}}" + ALPACA_CHAT_TEMPLATE if begins else ALPACA_CHAT_TEMPLATE


Template = Literal["alpaca", "chat"]
Messages = list[dict[str, str]]  # role, content, and THOUGHT of an assistant that thought
Encoded = tuple[list[int], list[bool]]
THOUGHT = "reasoning_content"


def encode(
    row: Instruction | Messages, template: Template, texts: TextTokens, thought: str = ""
) -> Encoded | str:
    """(tokens, learn) at full length, or what is wrong with the row. thought: of an Alpaca row; messages hold
    their own."""
    marks = texts.marks if template == "chat" else texts.usual_marks
    thoughts = [message.get(THOUGHT, "") for message in row] if isinstance(row, list) else [thought]
    if any(marks.after.strip() in one for one in thoughts):
        return f"its thinking has {marks.after.strip()} in it, which would end it"
    if template == "chat":
        if isinstance(row, list):
            return _chat(row, texts)
        # As `export --format chat` writes it.
        asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
        answer = {"role": "assistant", "content": row.output} | ({THOUGHT: thought} if thought else {})
        return _chat([{"role": "user", "content": asked}, answer], texts)
    if isinstance(row, list):
        if [m["role"] for m in row] != ["user", "assistant"]:
            return "Alpaca's template takes one question and its answer; use --template chat"
        thought = row[1].get(THOUGHT, "")
        return _alpaca(alpaca_prompt(row[0]["content"]), thought, row[1]["content"], texts)
    return _alpaca(alpaca_prompt(row.instruction, row.input), thought, row.output, texts)


def _alpaca(prompt: str, thought: str, response: str, texts: TextTokens) -> Encoded:
    asked, response = texts.plain(prompt), texts.plain(response)
    if thought:
        response = texts.usual_marks.before + texts.plain(thought) + texts.usual_marks.after + response
    before, both = prompt_ids(asked, texts), prompt_ids(asked + response, texts)
    # Where the two texts would melt into one token, the prompt's end stands, for so it will be asked.
    melted = both[: len(before)] != before
    said = texts.ids(response, add_special_tokens=False) if melted else both[len(before) :]
    after = [*said, texts.end]
    return before + after, [False] * len(before) + [True] * len(after)


def prompt_ids(prompt: str, texts: TextTokens) -> list[int]:
    """A prompt as it is asked: with a beginning-of-sequence where the model has one, and no end."""
    ids = texts.ids(prompt)
    return ids[:-1] if len(ids) > 1 and ids[-1] == texts.end else ids


def _chat(messages: Messages, texts: TextTokens) -> Encoded | str:
    """Every answer of the assistant is learnt, up to and with its end-of-turn; where that cannot be, as
    where templates take the thinking out of earlier turns, the last one."""
    from jinja2 import TemplateError

    told = [{n: text if n == "role" else texts.plain(text) for n, text in m.items()} for m in messages]
    try:
        if not any(THOUGHT in message for message in told[:-1]):
            shown, marks = told, texts.marks
            if THOUGHT in told[-1]:  # in the template's field for it, else as a part of the content
                last = {name: text for name, text in told[-1].items() if name != THOUGHT}
                thought = told[-1][THOUGHT]
                if marks.field:
                    last[marks.field] = thought
                else:
                    last["content"] = marks.before + thought + marks.after + last["content"]
                shown = [*told[:-1], last]
            found = _by_tokens(shown, texts) or _by_text(shown, texts)
            if found and told[-1].get(THOUGHT, "") in texts.chat_text(shown):
                return _ended(*found, texts.end)
        return _last_answer(told, texts)
    except TemplateError as error:
        return f"the chat template does not take it: {error}"


def _by_tokens(messages: Messages, texts: TextTokens) -> Encoded | None:
    """None where a prompt's tokens are not the beginning of the chat's."""
    tokens = texts.chat_ids(messages)
    learn = [False] * len(tokens)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = texts.chat_ids(messages[:place], add_generation_prompt=True)
            answered = texts.chat_ids(messages[: place + 1])
            if tokens[: len(asked)] != asked or tokens[: len(answered)] != answered:
                return None
            for position in range(len(asked), len(answered)):
                learn[position] = True
    return tokens, learn


def _by_text(messages: Messages, texts: TextTokens) -> Encoded | None:
    """The same where an answer's beginning would melt with its prompt's end into one token (an answer that
    begins with a line break): each stands alone, for so it will be asked. None where the template writes a
    turn differently once it has been answered."""
    whole, done = texts.chat_text(messages), 0
    tokens: list[int] = []
    learn: list[bool] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = texts.chat_text(messages[:place], add_generation_prompt=True)
            answered = texts.chat_text(messages[: place + 1])
            if not (whole.startswith(answered) and answered.startswith(asked)):
                return None
            for text, learnt in ((asked[done:], False), (answered[len(asked) :], True)):
                ids = texts.ids(text, add_special_tokens=False)
                tokens, learn = tokens + ids, learn + [learnt] * len(ids)
            done = len(answered)
    return tokens, learn


def _last_answer(messages: Messages, texts: TextTokens) -> Encoded:
    """The last answer after the chat as it will be asked, put together here: templates drop thinking from
    what was answered, or open it for the answer that comes."""
    bare = [{name: text for name, text in m.items() if name != THOUGHT} for m in messages]
    thought, answer, marks = messages[-1].get(THOUGHT, ""), messages[-1]["content"], texts.marks
    begins = "" if marks.opened or not thought else marks.before
    begins += thought + marks.after if thought or marks.opened else ""
    asked = texts.chat_ids(bare[:-1], add_generation_prompt=True)
    after = texts.ids(begins + answer + marks.end, add_special_tokens=False)
    return _ended(asked + after, [False] * len(asked) + [True] * len(after), texts.end)


def _ended(tokens: list[int], learn: list[bool], eos: int) -> Encoded:
    """Nothing is learnt after the last end-of-sequence; one is added where the template writes none."""
    last = len(tokens) - 1
    while last >= 0 and tokens[last] != eos and len(tokens) - last < 4:
        last -= 1
    if last >= 0 and tokens[last] == eos and learn[last]:
        return tokens[: last + 1], learn[: last + 1]
    return [*tokens, eos], [*learn, True]


def prompt_length(learn: Iterable[bool]) -> int:
    """How many tokens stand before the first that is learnt."""
    return next(place for place, learnt in enumerate(learn) if learnt)
