"""Replies of 200 (or nearly) that are odd, each for one row of a run whose other rows are answered well."""

from __future__ import annotations

from typing import Any

from tests.support.dialects import COST, PRICE_IN, PRICE_OUT, Row, Sent, chat, healed, read, reply, used

PARTS = {"type": "text", "text": "Two "}, {"type": "text", "text": "parts."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
AT_THE_BOUND = used(10, 512, completion_tokens_details={"reasoning_tokens": 512})
BOUND_COST = 10 * PRICE_IN + 512 * PRICE_OUT
TRIES = 2  # --attempts-empty


def finishes(name: str, finish: Any, outcome: str, content: Any = "The text.", **more: Any) -> Row:
    """A reply that is told apart by its finish_reason alone."""
    usable = outcome in ("stop", "length")
    asked = (1, TRIES) if "other" in outcome else 1
    output = content if usable and isinstance(content, str) else None
    return Row(name, (reply(content, finish, **more),), outcome, asked, output=output)


def empty(name: str, sent: Sent, **more: Any) -> Row:
    return Row(name, (sent,), "empty", TRIES, **more)


WHOLE = [
    finishes("finish end_turn (Anthropic)", "end_turn", "stop"),
    finishes("finish eos (Together)", "eos", "stop"),
    finishes("finish eos_token (watsonx)", "eos_token", "stop"),
    finishes("finish stop_sequence (Bedrock)", "stop_sequence", "stop"),
    finishes("finish STOP (Gemini)", "STOP", "stop"),
    finishes("finish null (SGLang)", None, "stop"),
    finishes("finish not sent", ..., "stop"),
    finishes("finish of no characters", "", "stop"),
    finishes("finish COMPLETE (Cohere)", "COMPLETE", "stop|other"),  # complete by its vendor's word
]
CUT = [
    finishes("finish model_length (Mistral)", "model_length", "length"),
    finishes("finish MAX_TOKENS (Gemini)", "MAX_TOKENS", "length"),
    finishes("finish max_tokens (Bedrock)", "max_tokens", "length"),
    finishes("finish max_output_tokens (Responses)", "max_output_tokens", "length"),
    finishes("finish model_context_window_exceeded (GLM)", "model_context_window_exceeded", "length"),
    finishes("finish token_limit (watsonx)", "token_limit", "length"),
    finishes("finish ERROR_LIMIT (Cohere)", "ERROR_LIMIT", "length|other"),
    finishes("finish maxPredictedTokensReached (LM Studio)", "maxPredictedTokensReached", "length"),
    finishes("finish contextLengthReached (LM Studio)", "contextLengthReached", "length"),
    finishes("finish maximum_tokens (Aleph Alpha)", "maximum_tokens", "length"),
    finishes("finish FinishReason.MAX_TOKENS (a name of Python's)", "FinishReason.MAX_TOKENS", "length"),
    finishes("finish limit (llama.cpp)", "limit", "length"),
    finishes("finish LENGTH (Titan)", "LENGTH", "length"),
]
FILTERED = [
    finishes("finish content_filter with text", "content_filter", "content_filter"),
    finishes("finish SAFETY without text (Gemini)", "SAFETY", "content_filter", None),
    finishes(
        "finish PROHIBITED_CONTENT (Gemini)", "PROHIBITED_CONTENT", "content_filter", "", usage=used(10, 0)
    ),
    finishes("finish RECITATION with half a text", "RECITATION", "content_filter", "It was the best of"),
    finishes("finish BLOCKLIST (Gemini)", "BLOCKLIST", "content_filter", None),
    finishes("finish SPII (Gemini)", "SPII", "content_filter", None),
    finishes("finish sensitive with half a text (GLM)", "sensitive", "content_filter", "Half a"),
    finishes("finish content_filtered (Bedrock)", "content_filtered", "content_filter"),
    finishes("finish guardrail_intervened (Bedrock)", "guardrail_intervened", "content_filter", "Blocked."),
    finishes("finish IMAGE_PROHIBITED_CONTENT (Gemini)", "IMAGE_PROHIBITED_CONTENT", "content_filter", None),
    finishes("finish FinishReason.SAFETY (a name of Python's)", "FinishReason.SAFETY", "content_filter"),
    finishes(
        "finish input_guardrail_triggered (Databricks)", "input_guardrail_triggered", "content_filter", None
    ),
    finishes("finish ERROR_TOXIC (Cohere)", "ERROR_TOXIC", "content_filter", None),
    finishes(
        "finish content_filter: PROHIBITED_CONTENT (Gemini's layer)",
        "content_filter: PROHIBITED_CONTENT",
        "content_filter",
        None,
    ),
    Row(
        "a choice of a filter and no message (Gemini's layer)",
        (
            Sent(
                chat(
                    usage=used(10, 0),
                    choices=[{"index": 0, "finish_reason": "content_filter: PROHIBITED_CONTENT"}],
                )
            ),
        ),
        "content_filter",
    ),
    Row(
        "a blocked prompt without choices (Gemini)",
        (Sent(chat(usage=used(10, 0), choices=[], promptFeedback={"blockReason": "PROHIBITED_CONTENT"})),),
        "content_filter",
    ),
]
REFUSED = [
    finishes("finish refusal without text (Claude)", "refusal", "refusal", ""),
    Row("a refusal beside no text", (reply(None, message={"refusal": "I can't help."}),), "refusal"),
    Row("a refusal as a part", (reply([{"type": "refusal", "refusal": "I can't help."}]),), "refusal"),
]
UNKNOWN = [
    finishes("finish OTHER (Gemini)", "OTHER", "other", "Half"),
    finishes("finish pause_turn (Anthropic)", "pause_turn", "other", "Half"),
    finishes("finish that nobody has heard of", "tired", "other", "Half"),
    finishes("finish LANGUAGE (Gemini)", "LANGUAGE", "other|content_filter", "Half"),
    finishes("finish as an object that says cut", {"type": "length", "length": 5}, "length|other", "Half"),
    Row(
        "finish function_call_filter: MALFORMED_FUNCTION_CALL (Gemini)",
        (reply(None, "function_call_filter: MALFORMED_FUNCTION_CALL", usage=used(10, 0)),),
        "other|tool_calls|empty",
        (1, TRIES),
    ),
]
EMPTY = [
    empty(
        "thinking took the bound (gpt-5)", reply("", "length", usage=AT_THE_BOUND), cost=TRIES * BOUND_COST
    ),
    empty("thinking took the bound, no text at all", reply(None, "length", usage=AT_THE_BOUND)),
    empty(
        "stop, text empty, reasoning_content full (DeepSeek)",
        reply("", message={"reasoning_content": "Let me think."}),
        cost=TRIES * COST,
        reasoning="Let me think.",
    ),
    empty("stop, no text, reasoning full (Ollama)", reply(None, message={"reasoning": "Let me think."})),
    empty("stop with blanks only", reply(" \n\n ")),
    empty("stop with nothing (vLLM)", reply("", usage=used(10, 0)), cost=TRIES * 10 * PRICE_IN),
    empty("stop and content is not there", Sent(chat(choice={"message": {"role": "assistant"}}))),
    empty("nothing but think marks", reply("<think>Let me think.</think>\n"), reasoning="Let me think."),
    empty("cut inside the think mark", reply("<think>Let me", "length"), reasoning="Let me"),
    empty(
        "parts of thinking only (Mistral)",
        reply([{"type": "thinking", "thinking": [{"type": "text", "text": "Let me think."}]}]),
        reasoning="Let me think.",
    ),
    empty("a list of no parts", reply([])),
    Row(
        "no choices and usage (Gemini)",
        (Sent(chat(usage=used(10, 0), choices=[])),),
        "empty|!malformed",
        (1, 8),
    ),
    healed("empty once, then an answer", reply("", usage=AT_THE_BOUND), cost=BOUND_COST + COST),
]
TOOLS = [
    Row(
        "tool_calls without text", (reply(None, "tool_calls", message={"tool_calls": [CALL]}),), "tool_calls"
    ),
    Row(
        "function_call as it was before tools",
        (reply(None, "function_call", message={"function_call": CALL["function"]}),),
        "tool_calls",
    ),
    Row("tool_calls under stop", (reply("", message={"tool_calls": [CALL]}),), "tool_calls"),
    Row("tool_use (Anthropic)", (reply(None, "tool_use", message={"tool_calls": [CALL]}),), "tool_calls"),
    Row(
        "a part of the kind tool_use (Anthropic)",
        (reply([{"type": "tool_use", "id": "1", "name": "s", "input": {}}]),),
        "tool_calls",
    ),
    Row("a list of no tool_calls", (reply("Text.", message={"tool_calls": []}),), "stop", output="Text."),
]


READ = [
    read("text in parts", reply([*PARTS]), "Two parts."),
    read("text in parts that are strings", reply(["Two ", "parts."]), "Two parts."),
    read(
        "thinking and text in parts (Mistral)",
        reply([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, *PARTS]),
        "Two parts.",
        "Hm.",
    ),
    read(
        "reasoning and output_text in parts (Responses)",
        reply([{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Answer."}]),
        "Answer.",
        "Hm.",
    ),
    read(
        "thinking as a string, and text (Anthropic)",
        reply([{"type": "thinking", "thinking": "Hm.", "signature": "x"}, *PARTS]),
        "Two parts.",
        "Hm.",
    ),
    read(
        "a summary of reasoning, and text (Responses)",
        reply([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, *PARTS]),
        "Two parts.",
        "Hm.",
    ),
    read("one part that is not in a list", reply({"type": "text", "text": "Answer."}), "Answer."),
    read("parts cut", reply([*PARTS], "length"), "Two parts.", outcome="length"),
    read(
        "reasoning_content beside text",
        reply("Answer.", message={"reasoning_content": "Hm."}),
        "Answer.",
        "Hm.",
    ),
    read("reasoning beside text", reply("Answer.", message={"reasoning": "Hm."}), "Answer.", "Hm."),
    read("reasoning_content null", reply("Answer.", message={"reasoning_content": None}), "Answer."),
    read(
        "reasoning and its details (OpenRouter)",
        reply(
            "Answer.",
            message={"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        ),
        "Answer.",
        "Hm.",
    ),
    read("think marks before the text", reply("<think>\nHm.\n</think>\n\nAnswer."), "Answer.", "Hm."),
    read("only the closing think mark", reply("Hm.\n</think>\n\nAnswer."), "Answer.", "Hm."),
    read("think marks with nothing in them (Qwen)", reply("<think>\n\n</think>\n\nAnswer."), "Answer."),
    read(
        "think marks and an answer that is cut",
        reply("<think>Hm.</think>Ans", "length"),
        "Ans",
        "Hm.",
        "length",
    ),
    read("a text about the think mark", reply("Write <think> to begin."), "Write <think> to begin."),
    read("a number", reply(42), "42"),
    read(
        "reasoning_text as a part (Responses)",
        reply([{"type": "reasoning_text", "text": "Hm."}, {"type": "text", "text": {"value": "Answer."}}]),
        "Answer.",
        "Hm.",
    ),
    read("reasoning_text (Copilot)", reply("Answer.", message={"reasoning_text": "Hm."}), "Answer.", "Hm."),
    read(
        "reasoning_content among the provider's own fields (LiteLLM)",
        reply("Answer.", message={"provider_specific_fields": {"reasoning_content": "Hm."}}),
        "Answer.",
        "Hm.",
    ),
    read("thinking beside the message", reply("Answer.", choice={"reasoning": "Hm."}), "Answer.", "Hm."),
    read("a closing mark in the line", reply("Hm, so two.</think>Answer."), "Answer.", "Hm, so two."),
    read("thinking twice", reply("<think>A.</think>\n<think>B.</think>\nAnswer."), "Answer.", "A.\nB."),
    read(
        "channels without their marks (gpt-oss)", reply("analysisHm.assistantfinalAnswer."), "Answer.", "Hm."
    ),
    read("a channel of thought (Gemma)", reply("<|channel>thought\nHm.<channel|>Answer."), "Answer.", "Hm."),
    read("[THINK] marks (Magistral)", reply("[THINK]Hm.[/THINK]Answer."), "Answer.", "Hm."),
]

ODD = [*WHOLE, *CUT, *FILTERED, *REFUSED, *UNKNOWN, *EMPTY, *TOOLS, *READ]
