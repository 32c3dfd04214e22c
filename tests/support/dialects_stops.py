"""What ends a run: all that follows a few answers is refused (STOPS), a day's quota is used up (DAILY), there
is no API at the address (MISTAKES). What must not end it: filters at the head of a pool (FIRST_FILTERED)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tests.support.dialects import Sent, anthropic, error, refusal, says
from tests.support.dialects_refusals import FLAGGED, GLM, GROK, HTML, MODERATED, openrouter, xai


@dataclass(frozen=True)
class Stop:
    """What ends a run with exit code 3, and the words of the server that must be repeated."""

    name: str
    sent: Sent
    says: str


BALANCE = "Your credit balance is too low to access the Anthropic API."
XAI_SPENT = "Your team t has either used all available credits or reached its monthly spending limit."
MOONSHOT = "Your account org-1 is suspended due to insufficient balance, please recharge your account"
STOPS = [
    Stop(
        "402 Insufficient Balance (DeepSeek)",
        refusal(402, "Insufficient Balance", "invalid_request_error", "unknown_error"),
        "Insufficient Balance",
    ),
    Stop(
        "402 Insufficient credits (OpenRouter)",
        openrouter(402, "Insufficient credits. Add more using the page of credits"),
        "Insufficient credits",
    ),
    Stop(
        "402 as an error in a 200",
        Sent({"error": {"code": 402, "message": "Insufficient credits"}}),
        "Insufficient credits",
    ),
    Stop(
        "402 Credit limit exceeded (Together)",
        refusal(402, "Credit limit exceeded", None, "credit_limit"),
        "Credit limit exceeded",
    ),
    Stop(
        "400 credit balance is too low (Anthropic)",
        anthropic(400, "invalid_request_error", BALANCE),
        "credit balance is too low",
    ),
    Stop(
        "429 insufficient_quota (OpenAI)",
        refusal(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        "exceeded your current quota",
    ),
    Stop(
        "429 exceeded_current_quota_error (Moonshot)",
        refusal(429, MOONSHOT, None, "exceeded_current_quota_error"),
        "suspended due to insufficient balance",
    ),
    Stop(
        "429 all available credits (xAI)",
        xai(429, "Some resource has been exhausted", XAI_SPENT),
        "used all available credits",
    ),
    Stop(
        "429 code 1113 (GLM)",
        error(429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}),
        "余额不足",
    ),
    Stop(
        "400 Arrearage (DashScope)",
        refusal(
            400, "Access denied, please make sure your account is in good standing.", "Arrearage", "Arrearage"
        ),
        "good standing",
    ),
    Stop(
        "403 AllocationQuota.FreeTierOnly (DashScope)",
        refusal(
            403,
            "The free tier of the model has been exhausted.",
            "AllocationQuota.FreeTierOnly",
            "AllocationQuota.FreeTierOnly",
        ),
        "free tier",
    ),
    Stop(
        "403 no credits yet (xAI)",
        xai(403, "permission-denied", "Your newly created team doesn't have any credits or licenses yet."),
        "credits or licenses",
    ),
    Stop(
        "404 model_not_found (OpenAI)",
        refusal(
            404,
            "The model `teacher` does not exist or you do not have access to it.",
            "model_not_found",
            "invalid_request_error",
        ),
        "does not exist",
    ),
    Stop(
        "404 not_found_error of a model (Anthropic)",
        anthropic(404, "not_found_error", "model: claude-3-opus-20240229"),
        "claude-3-opus",
    ),
    Stop(
        "404 model not found, try pulling it first (Ollama)",
        refusal(404, 'model "teacher" not found, try pulling it first', None, "api_error"),
        "try pulling it",
    ),
    Stop(
        "404 No endpoints found (OpenRouter)",
        openrouter(404, "No endpoints found for any/teacher."),
        "No endpoints found",
    ),
    Stop(
        "400 model_decommissioned (Groq)",
        refusal(
            400,
            "The model `teacher` has been decommissioned and is no longer supported.",
            "model_decommissioned",
            "invalid_request_error",
        ),
        "decommissioned",
    ),
    Stop(
        "400 Model Not Exist (DeepSeek)",
        refusal(400, "Model Not Exist", "invalid_request_error", "invalid_request_error"),
        "Model Not Exist",
    ),
    Stop(
        "400 invalid model name (LiteLLM)",
        refusal(400, "/chat/completions: Invalid model name passed in model=teacher", "400"),
        "Invalid model name",
    ),
    Stop(
        "403 not enough balance (Novita)",
        error(403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance"}),
        "not enough balance",
    ),
    Stop(
        "400 organization disabled (Anthropic)",
        anthropic(400, "invalid_request_error", "This organization has been disabled."),
        "disabled",
    ),
    Stop(
        "403 of a token that has expired (Bedrock)",
        error(403, {"message": "The security token included in the request is expired"}),
        "is expired",
    ),
    Stop(
        "400 model_not_supported (Hugging Face)",
        refusal(
            400,
            "The requested model 'teacher' is not supported by any provider you have enabled.",
            "model_not_supported",
        ),
        "not supported by any provider",
    ),
    Stop(
        "404 at the end of its life (Bedrock)",
        error(404, {"message": "This model version has reached the end of its life."}),
        "end of its life",
    ),
    Stop(
        "401 in the middle of a run",
        refusal(401, "Incorrect API key provided.", "invalid_api_key"),
        "Incorrect API key",
    ),
    Stop(
        "401 as an error in a 200",
        Sent({"error": {"code": 401, "message": "No auth credentials found"}}),
        "No auth credentials",
    ),
]

REFUSED_BY_ALL = [  # in the middle of a run, with words from which nobody can tell that it is for good
    Stop(
        "400 of a place (Gemini)", refusal(400, "User location is not supported for the API use."), "location"
    ),
    Stop("400 of a setup", refusal(400, "Something is odd"), "Something is odd"),
    Stop(
        "302 to a page where people sign in", Sent("", 302, {"Location": "https://sign.in/here"}), "sign.in"
    ),
    Stop("407 of a proxy", error(407, "Proxy authentication required", "text/plain"), "Proxy"),
]
FIRST_FILTERED = [
    Stop("code 1301 (GLM)", GLM, ""),
    Stop("invalid_prompt (OpenAI)", FLAGGED, ""),
    Stop("403 with reasons (OpenRouter)", MODERATED, ""),
    Stop("403 of usage guidelines (xAI)", GROK, ""),
]


def violated(quota: str, delay: str) -> list[dict[str, Any]]:
    """A 429 of Gemini's, with the quota that is used up and how long to wait."""
    return [{"error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
        ],
    }}]  # fmt: skip


def free_models() -> dict[str, Any]:
    reset = str(int((time.time() + 5 * 3600) * 1000))
    headers = {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    words = (
        "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day"
    )
    return {"error": {"message": words, "code": 429, "metadata": {"headers": headers}}}


TOKENS_A_DAY = (
    "on tokens per day (TPD): Limit 100000, Used 99336, Requested 1321. Please try again in 5h12m3.6s."
)
DAILY = [
    Stop(
        "requests a day (Gemini)",
        error(429, violated("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "18000s")),
        "quota",
    ),
    Stop("free-models-per-day (OpenRouter)", error(429, free_models), "free-models-per-day"),
    Stop(
        "tokens a day (Groq)",
        refusal(
            429, "Rate limit reached for model `teacher` " + TOKENS_A_DAY, "rate_limit_exceeded", "tokens"
        ),
        "tokens per day",
    ),
    Stop(
        "retry-after of five hours",
        error(429, says("Daily limit reached"), retry_after="18000"),
        "Daily limit",
    ),
]
SHORT_WAIT = violated("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "20s")
DAY_WITH_A_SHORT_WAIT = Stop(
    "requests a day, and a wait that does not help (Gemini)", error(429, SHORT_WAIT), "quota"
)

MISTAKES = [
    Stop(
        "a page instead of an API",
        Sent("<!DOCTYPE html><title>Welcome to the chat</title>", type=HTML),
        "/v1",
    ),
    Stop("a page under 404", error(404, "<html><title>404 Not Found</title></html>", HTML), "/v1"),
    Stop("a page under 405 (nginx)", error(405, "<html><title>405 Not Allowed</title></html>", HTML), "/v1"),
    Stop("words instead of an API (Ollama's root)", Sent("Ollama is running", type="text/plain"), "/v1"),
    Stop("a FastAPI server without that path", error(404, {"detail": "Not Found"}), "/v1"),
]
