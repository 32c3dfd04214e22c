"""Statuses and words by which servers refuse one row of a run whose other rows are answered well: filters,
which are an outcome, and refusals, which are a failure with a cause."""

from __future__ import annotations

from typing import Any

from tests.support.dialects import Row, Sent, anthropic, error, refusal

AZURE_WORDS = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
)
INNER = {
    "code": "ResponsibleAIPolicyViolation",
    "content_filter_result": {"jailbreak": {"filtered": True, "detected": True}},
}
HTML = "text/html; charset=utf-8"
BLOCKED = "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>"


def openrouter(code: int, message: str, **metadata: Any) -> Sent:
    body = {"error": {"message": message, "code": code, "metadata": metadata}, "user_id": "user_1"}
    return error(code, body)


def xai(status: int, code: str, words: str) -> Sent:
    """Where an error is a string beside its code."""
    return error(status, {"code": code, "error": words})


AZURE = refusal(400, AZURE_WORDS, "content_filter", None, status=400, innererror=INNER)
GLM = error(
    400,
    {
        "contentFilter": [{"level": 1, "role": "user"}],
        "error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"},
    },
)
DASHSCOPE = refusal(
    400, "Input data may contain inappropriate content.", "data_inspection_failed", "data_inspection_failed"
)
MODERATED = openrouter(
    403,
    "Your chosen model requires moderation and your input was flagged",
    reasons=["violence"], flagged_input="Tell me", provider_name="OpenAI", model_slug="openai/gpt-4o",
)  # fmt: skip
FLAGGED = refusal(
    400,
    "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
    "invalid_prompt",
    "invalid_request_error",
)
GROK = xai(
    403,
    "permission-denied",
    "Content violates usage guidelines. Team: t, Model: grok-4, Failed check: SAFETY_CHECK_TYPE_BIO",
)


def gemini(message: str) -> Sent:
    """Gemini's errors come in a list."""
    return error(400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}])


def filtered(name: str, sent: Sent) -> Row:
    return Row(name, (sent,), "content_filter", 1)


def refused(name: str, sent: Sent, cause: str = "", words: str | None = None) -> Row:
    return Row(name, (sent,), "!" + cause, 1, says=words)


REFUSALS = [
    filtered("content_filter with innererror (Azure)", AZURE),
    filtered(
        "content_filter with inner_error (Azure)",
        error(400, {"error": {"code": "content_filter", "message": AZURE_WORDS, "inner_error": INNER}}),
    ),
    filtered(
        "a filter inside provider_specific_fields (LiteLLM)",
        refusal(
            400,
            "litellm.BadRequestError: AzureException",
            "400",
            None,
            provider_specific_fields={"innererror": INNER},
        ),
    ),
    filtered(
        "ContentPolicyViolationError in words only (LiteLLM)",
        refusal(400, "litellm.ContentPolicyViolationError: AzureException - " + AZURE_WORDS, "400"),
    ),
    filtered("code 1301 with contentFilter (GLM)", GLM),
    filtered("data_inspection_failed (DashScope)", DASHSCOPE),
    filtered(
        "DataInspectionFailed in words only (Qwen)",
        refusal(
            400,
            "<400> InternalError.Algo.DataInspectionFailed: "
            "Input text data may contain inappropriate content.",
            None,
            "invalid_request_error",
        ),
    ),
    filtered("invalid_prompt that was flagged (OpenAI)", FLAGGED),
    filtered(
        "invalid_prompt for safety reasons (OpenAI)",
        refusal(
            400,
            "Invalid prompt: we've limited access to this content for safety reasons.",
            "invalid_prompt",
            "invalid_request_error",
        ),
    ),
    filtered(
        "high risk (Moonshot)",
        refusal(400, "The request was rejected because it was considered high risk", None, "content_filter"),
    ),
    filtered(
        "output blocked by a filtering policy (Anthropic)",
        anthropic(400, "invalid_request_error", "Output blocked by content filtering policy"),
    ),
    filtered(
        "InputTextSensitiveContentDetected (Volcengine)",
        refusal(
            400,
            "The request failed because the input text may contain sensitive information.",
            "InputTextSensitiveContentDetected",
            "BadRequest",
        ),
    ),
    filtered(
        "451 censorship_blocked (StepFun)",
        refusal(451, "The content you provided or machine outputted is blocked.", None, "censorship_blocked"),
    ),
    filtered("403 with reasons (OpenRouter)", MODERATED),
    filtered("403 that violates usage guidelines (xAI)", GROK),
    filtered(
        "403 of a provider behind OpenRouter",
        openrouter(
            403,
            "Provider returned error",
            raw='{"error":{"message":"Content Exists Risk, flagged by moderation"}}',
            provider_name="Any",
        ),
    ),
    filtered(
        "451 of a provider behind OpenRouter",
        openrouter(
            451,
            "Provider returned error",
            raw='{"error":{"message":"The content you provided or machine outputted is blocked."}}',
            provider_name="StepFun",
        ),
    ),
    filtered(
        "400 Content Exists Risk (DeepSeek)",
        refusal(400, "Content Exists Risk", "invalid_request_error", "invalid_request_error"),
    ),
    filtered(
        "446 of a guardrail (Portkey)",
        refusal(446, "The guardrail checks defined in the config failed.", None, "hooks_failed"),
    ),
    filtered(
        "424 blocked by a gateway (Cloudflare)",
        error(
            424,
            {"error": [{"code": 2016, "message": "Prompt blocked due to security configurations"}]},
        ),
    ),
    filtered(
        "500 of a filter behind a gateway (One API)",
        refusal(500, "blocked by Gemini API: PROHIBITED_CONTENT", "prompt_blocked", "upstream_error"),
    ),
    filtered(
        "an error in capitals (Tencent)",
        error(
            400,
            {
                "Response": {
                    "Error": {"Code": "FailedOperation", "Message": "输入内容包含敏感信息"},
                    "RequestId": "1",
                }
            },
        ),
    ),
    filtered("nsfw (Together)", refusal(422, "Input prompt contains NSFW content")),
    refused("403 with a page (Cloudflare)", error(403, BLOCKED, HTML)),
    refused("400 as a string", error(400, {"error": "the field is odd"}), "bad_request", "the field is odd"),
    refused(
        "400 in a list (Gemini)",
        gemini("Request contains an invalid argument."),
        "bad_request",
        "Request contains an invalid argument.",
    ),
    refused(
        "400 of plain words",
        error(400, "upstream did not like it", "text/plain"),
        "bad_request",
        "upstream did not like it",
    ),
    refused(
        "400 flat (Mistral)",
        error(
            400,
            {
                "object": "error",
                "message": "Expected last role user",
                "type": "invalid_request_message_order",
                "code": "3230",
            },
        ),
        "bad_request",
        "Expected last role user",
    ),
    refused(
        "422 with a list of details (vLLM, Mistral)",
        error(
            422,
            {"detail": [{"loc": ["body", "messages"], "msg": "Field is unpleasant", "type": "value_error"}]},
        ),
        "bad_request",
        "Field is unpleasant",
    ),
    refused("404 of one row", refusal(404, "Not found here"), "not_found"),
    refused(
        "a context that is too long (OpenAI)",
        refusal(
            400,
            "This model's maximum context length is 8192 tokens.",
            "context_length_exceeded",
            "invalid_request_error",
        ),
        "too_large",
    ),
    refused(
        "a context that is too long (vLLM)",
        error(
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you requested 5000.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        "too_large",
    ),
    refused(
        "exceed_context_size_error (llama.cpp)",
        refusal(
            400,
            "the request exceeds the available context size. try increasing the context size",
            400,
            "exceed_context_size_error",
            n_ctx=256,
        ),
        "too_large",
    ),
    refused(
        "prompt is too long (Anthropic)",
        anthropic(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        "too_large",
    ),
    refused(
        "input token count exceeds (Gemini)",
        gemini("The input token count (1200000) exceeds the maximum number of tokens."),
        "too_large",
    ),
    refused(
        "413 request_too_large (Anthropic)",
        anthropic(413, "request_too_large", "Request exceeds the maximum size"),
        "too_large",
    ),
    refused(
        "please reduce the length (Groq)",
        refusal(400, "Please reduce the length of the messages or completion."),
        "too_large",
    ),
    refused(
        "inputs and new tokens (TGI)",
        error(422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097."}),
        "too_large",
    ),
    refused(
        "a prompt that is too long (GLM)",
        error(400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
        "too_large",
    ),
    refused(
        "a text of the row that is repeated and speaks of bills",
        error(
            422,
            {"detail": [{"loc": ["body", "messages"], "msg": "Odd: 'Explain an overdue, unpaid balance'"}]},
        ),
        "bad_request",
    ),
    refused(
        "an unknown character",
        refusal(400, "The prompt for the model has an unknown character in it"),
        "bad_request",
    ),
]
