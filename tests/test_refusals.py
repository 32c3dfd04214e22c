"""What a refusal means: by status, by codes, and by anybody's words."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from engine.provider.errors import (
    AddressWrong,
    AskError,
    AuthRefused,
    ModelGone,
    QuotaExhausted,
    RateLimited,
    RowRefused,
    RunStopped,
    ServerFault,
)
from engine.provider.refusals import embedded_error, is_filtered, read_error


def error_body(message: object = "No.", code: object = None, kind: object = None, **more: Any) -> bytes:
    return orjson.dumps({"error": {"message": message, "code": code, "type": kind, **more}})


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (400, RowRefused, "bad_request"),
        (404, RowRefused, "not_found"),
        (413, RowRefused, "too_large"),
        (422, RowRefused, "bad_request"),
        (405, RowRefused, "bad_request"),
        (408, ServerFault, "server"),
        (409, ServerFault, "server"),
        (500, ServerFault, "server"),
        (502, ServerFault, "server"),
        (503, ServerFault, "server"),
        (529, ServerFault, "server"),
        (429, RateLimited, "rate_limit"),
    ],
)
def test_a_status_decides_the_error(status: int, kind: type[AskError], cause: str) -> None:
    error = read_error(status, {}, error_body("Sorry, no."))
    assert type(error) is kind
    assert isinstance(error, AskError)
    assert (error.cause, error.status, str(error)) == (cause, status, f"HTTP {status}: Sorry, no.")
    assert not error.maybe_billed


def test_a_refused_key_stops_the_run_in_the_server_s_words() -> None:
    error = read_error(401, {}, error_body("Incorrect API key provided."))
    assert isinstance(error, AuthRefused)
    assert isinstance(error, RunStopped)
    assert str(error) == "HTTP 401: Incorrect API key provided."


def test_what_is_forbidden_may_be_the_row() -> None:
    error = read_error(403, {}, error_body("Forbidden."))
    assert isinstance(error, RowRefused)
    assert (error.cause, error.about) == ("auth", "")


@pytest.mark.parametrize(
    "body",
    [
        error_body("You exceeded your current quota", code="insufficient_quota"),
        error_body("You exceeded your current quota", kind="insufficient_quota"),
        error_body("Hard limit", code="billing_hard_limit_reached"),
    ],
)
def test_an_exhausted_quota_stops_the_run(body: bytes) -> None:
    assert isinstance(read_error(429, {}, body), QuotaExhausted)


def test_a_rate_limit_tells_the_wait_and_the_kind() -> None:
    body = error_body("Rate limit reached", code="rate_limit_exceeded", kind="tokens")
    error = read_error(429, {"retry-after-ms": "300"}, body)
    assert isinstance(error, RateLimited)
    assert (error.wait, error.kind) == (0.3, "tokens")
    plain = read_error(429, {}, b"slow down")
    assert isinstance(plain, RateLimited)
    assert (plain.wait, plain.kind, str(plain)) == (None, "", "HTTP 429: slow down")


def test_a_request_larger_than_the_limit_fails_at_once() -> None:
    words = "Request too large for gpt-4 on tokens per min (TPM): Limit 10000, Requested 12047."
    error = read_error(
        429, {"retry-after": "1"}, error_body(words, code="rate_limit_exceeded", kind="tokens")
    )
    assert isinstance(error, RowRefused)
    assert error.cause == "too_large"


@pytest.mark.parametrize("code", ["context_length_exceeded", "string_above_max_length"])
def test_a_prompt_longer_than_the_context_is_too_large(code: str) -> None:
    error = read_error(400, {}, error_body(code=code))
    assert isinstance(error, RowRefused)
    assert error.cause == "too_large"


def test_a_server_fault_tells_how_long_to_wait() -> None:
    error = read_error(503, {"retry-after": "30"}, b"")
    assert isinstance(error, ServerFault)
    assert error.wait == 30
    assert str(error) == "HTTP 503: no message"


@pytest.mark.parametrize(
    ("status", "code", "filtered"),
    [
        (400, "content_filter", True),
        (400, "content_policy_violation", True),
        (400, "invalid_request_error", False),
        (400, None, False),
        (500, "content_filter", False),
        (200, "content_filter", False),
    ],
)
def test_the_content_filter_s_400_is_told_from_others(status: int, code: str | None, filtered: bool) -> None:
    assert is_filtered(status, error_body(code=code)) == filtered


def test_a_long_message_is_cut() -> None:
    for body in (error_body("x" * 100_000), b"y" * 100_000):
        assert len(str(read_error(500, {}, body))) <= 520


FILTERS = [
    (403, error_body("Input flagged", 403, metadata={"reasons": ["violence"], "flagged_input": "x"})),
    (403, error_body('openai/gpt-4 requires moderation. Your input was flagged for "violence"', 403)),
    (400, error_body("Input data may contain inappropriate content.", "data_inspection_failed")),
    (400, error_body("系统检测到输入或生成内容可能包含不安全或敏感内容", "1301")),
    (
        400,
        orjson.dumps(
            {
                "error": {
                    "message": "Bad",
                    "provider_specific_fields": {"innererror": {"code": "ResponsibleAIPolicyViolation"}},
                }
            }
        ),
    ),
    (
        400,
        orjson.dumps(
            {
                "error": {
                    "code": None,
                    "message": "The response was filtered due to the prompt "
                    "triggering Azure OpenAI's content management policy.",
                }
            }
        ),
    ),
    (400, error_body("Content Exists Risk: considered high risk", "invalid_request_error")),
    (400, error_body("Your prompt was flagged as potentially violating our usage policy.", "invalid_prompt")),
    (422, orjson.dumps({"detail": "Blocked by the guardrail 'pii'"})),
    (
        400,
        error_body(
            "Provider returned error",
            400,
            metadata={"raw": '{"error":{"code":"content_filter","message":"no"}}'},
        ),
    ),
    (451, b"Unavailable For Legal Reasons"),
]


@pytest.mark.parametrize(("status", "raw"), FILTERS)
def test_a_filter_is_known_in_anybody_s_words(status: int, raw: bytes) -> None:
    assert is_filtered(status, raw)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, error_body("Invalid value for 'messages'")),
        (
            403,
            error_body(
                "Your account was deactivated for violating our usage policies", "account_deactivated"
            ),
        ),
        (
            403,
            error_body("Country, region, or territory not supported", "unsupported_country_region_territory"),
        ),
        (400, error_body("temperature is not supported", "unsupported_parameter")),
        (429, error_body("flagged")),
    ],
)
def test_other_refusals_are_not_taken_for_a_filter(status: int, raw: bytes) -> None:
    assert not is_filtered(status, raw)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (402, b""),
        (402, error_body("This request requires more credits, or fewer max_tokens.", 402)),
        (
            400,
            error_body(
                "Your credit balance is too low to access the Anthropic API.", kind="invalid_request_error"
            ),
        ),
        (429, error_body("Quota", kind="exceeded_current_quota_error")),
        (429, error_body("Account balance insufficient", "1113")),
        (403, error_body("Insufficient account balance", 30001)),
        (400, error_body("Access denied, please make sure your account is in good standing.", "Arrearage")),
        (
            400,
            error_body(
                "Budget has been exceeded! Current cost: 10.1, Max budget: 10.0", "400", "budget_exceeded"
            ),
        ),
    ],
)
def test_an_empty_account_stops_the_run(status: int, raw: bytes) -> None:
    assert isinstance(read_error(status, {}, raw), QuotaExhausted)


def google(period: str, delay: str = "38s") -> bytes:
    quota = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
        {"quotaId": f"GenerateRequestsPer{period}PerProjectPerModel"}]}  # fmt: skip
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    words = "You exceeded your current quota, please check your plan and billing details."
    error = {"code": 429, "message": words, "status": "RESOURCE_EXHAUSTED", "details": [quota, retry]}
    return orjson.dumps([{"error": error}])


def test_a_quota_for_a_minute_is_waited_for_and_one_for_a_day_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.provider.refusals.midnight_pacific", lambda: 7 * 3600.0)
    minute = read_error(429, {}, google("Minute", "4s"))
    assert isinstance(minute, RateLimited)
    assert minute.wait == 4
    day = read_error(429, {}, google("Day"))
    assert isinstance(day, QuotaExhausted)
    assert "it resets at" in str(day)


def test_a_limit_for_a_day_that_ends_soon_is_waited_for() -> None:
    words = "Rate limit reached on requests per day (RPD): Limit 200. Please try again in 7m12s."
    error = read_error(429, {}, error_body(words, "rate_limit_exceeded", "requests"))
    assert isinstance(error, RateLimited)
    assert error.wait == 432


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (
            404,
            error_body(
                "The model `gpt-4` does not exist or you do not have access to it.", "model_not_found"
            ),
        ),
        (400, error_body("The model `llama2-70b` has been decommissioned", "model_decommissioned")),
        (
            404,
            error_body("model: claude-2.0", kind="not_found_error").replace(b"model:", b"model not found:"),
        ),
        (404, error_body("No endpoints found for openai/gpt-9.", 404)),
        (400, error_body("openai/gpt-9 is not a valid model ID", 400).replace(b"openai", b"model openai")),
        (404, error_body("The API deployment for this resource does not exist.", "DeploymentNotFound")),
    ],
)
def test_a_model_that_is_gone_stops_the_run(status: int, raw: bytes) -> None:
    assert isinstance(read_error(status, {}, raw), ModelGone)


@pytest.mark.parametrize(
    ("raw", "flag"),
    [
        (
            error_body(
                "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) "
                "value is supported.",
                "unsupported_value",
                param="temperature",
            ),
            "--omit temperature",
        ),
        (
            error_body(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                "unsupported_parameter",
                param="max_tokens",
            ),
            "--model-kind reasoning",
        ),
        (error_body("`temperature` and `top_p` cannot both be specified for this model."), "--omit top_p"),
        (error_body("`temperature` is deprecated for this model."), "--omit temperature"),
        (
            error_body("max_tokens: 100000 > 8192, which is the maximum allowed; it is too large"),
            "--max-tokens",
        ),
        (error_body("reasoning_effort: unsupported value 'minimal'"), "--reasoning-effort"),
        (orjson.dumps({"detail": "top_p: Extra inputs are not permitted"}), "--omit top_p"),
    ],
)
def test_a_parameter_that_is_refused_is_told_with_its_flag(raw: bytes, flag: str) -> None:
    error = read_error(400, {}, raw)
    assert isinstance(error, RowRefused)
    assert error.about == "run"
    assert flag in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "prompt is too long: 250000 tokens > 200000 maximum",
        "'max_tokens' is too large: 512. This model's maximum context length is 4096 tokens",
        "Range of input length should be [1, 30720]",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ],
)
def test_a_row_that_is_too_long_is_the_row_s_fault(words: str) -> None:
    error = read_error(400, {}, error_body(words))
    assert isinstance(error, RowRefused)
    assert (error.cause, error.about) == ("too_large", "row")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_address_and_not_what_is_secret_in_it(status: int) -> None:
    location = "https://user:pw@api.other.example/v1/chat/completions?key=sk-1"
    error = read_error(status, {"location": location}, b"")
    assert isinstance(error, AddressWrong)
    assert "--base-url https://api.other.example/v1" in str(error)
    assert "sk-1" not in str(error)
    assert "pw" not in str(error)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"error": {"code": 429, "message": "Rate limited upstream"}}, RateLimited, 429),
        ({"error": {"code": 502, "message": "Provider returned error"}}, ServerFault, 502),
        ({"error": {"message": "Overloaded", "type": "overloaded_error"}}, ServerFault, 529),
        ({"error": "flat words"}, ServerFault, 500),
        ([{"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}], ServerFault, 503),
        ({"object": "error", "message": "boom", "code": 400}, RowRefused, 400),
        ({"choices": [{"finish_reason": "error", "message": {"content": "Half a"}}]}, ServerFault, 500),
        (
            {
                "choices": [
                    {
                        "finish_reason": "error",
                        "error": {"code": 429, "message": "slow"},
                        "message": {"content": "Half"},
                    }
                ]
            },
            RateLimited,
            429,
        ),
        ({"choices": None, "base_resp": {"status_code": 1000, "status_msg": "unknown"}}, ServerFault, 500),
    ],
)
def test_an_error_in_a_reply_of_200_is_read_as_if_its_code_were_the_status(
    body: Any, kind: type[AskError], status: int
) -> None:
    error = embedded_error(body)
    assert type(error) is kind
    assert isinstance(error, AskError)
    assert error.status == status


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"code": 401, "message": "bad key"}}, AuthRefused),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, QuotaExhausted),
        (
            {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
            QuotaExhausted,
        ),
    ],
)
def test_an_error_in_a_reply_of_200_may_end_the_run(body: Any, kind: type[RunStopped]) -> None:
    assert type(embedded_error(body)) is kind


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "error": None},
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "error_free"}]},
        {"choices": [{"message": {"content": "Hi"}}], "base_resp": {"status_code": 0}},
        {"choices": []},
        {},
    ],
)
def test_a_reply_is_not_taken_for_an_error(body: Any) -> None:
    assert embedded_error(body) is None


# Refusals of everybody, in the words of more servers: nothing more will be answered.


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (412, "Account x is suspended, possibly due to reaching the monthly spending limit", QuotaExhausted),
        (
            400,
            "You have reached your specified API usage limits. You will regain access on 2026-12-01",
            QuotaExhausted,
        ),
        (403, "Sorry, your account balance is insufficient", QuotaExhausted),
        (400, "Your organization has an unpaid invoice", QuotaExhausted),
        (403, "Negative account balance. Please recharge.", QuotaExhausted),
        (409, "Your plan's invoice is past due", QuotaExhausted),
        (400, "API key expired. Please renew the API key.", AuthRefused),
        (400, "API key not valid. Please pass a valid API key.", AuthRefused),
        (403, "Invalid API Key", AuthRefused),
        (422, "Incorrect API key provided: sk-12***", AuthRefused),
        (400, "No models loaded. Please load a model in the developer page", ModelGone),
        (400, "Model was unloaded while the request was still in queue..", ModelGone),
        (404, "model 'm' was removed on September 15, 2025", ModelGone),
        (400, "The model m has been discontinued. Use m2.", ModelGone),
    ],
)
def test_a_refusal_of_everybody_is_known_in_anybody_s_words(
    status: int, said: str, kind: type[Exception]
) -> None:
    assert type(read_error(status, {}, error_body(said))) is kind


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Invalid request: messages[0].content must not be empty"),
        (422, "The image could not be processed"),
        (400, "Parameter stop has too many entries"),
    ],
)
def test_a_row_s_refusal_is_not_taken_for_everybody_s(status: int, said: str) -> None:
    assert isinstance(read_error(status, {}, error_body(said)), RowRefused)


def test_a_prompt_over_the_model_s_limit_is_too_large_in_moonshot_s_words() -> None:
    error = read_error(400, {}, error_body("Your request exceeded model token limit: 8192"))
    assert isinstance(error, RowRefused)
    assert error.cause == "too_large"


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("This response_format type is unavailable now", "--omit response_format"),
        ("Developer instruction is not enabled for models/gemma-3", "leave out --system"),
        ("System role not supported", "leave out --system"),
    ],
)
def test_what_a_model_does_not_take_is_said_with_the_flag(said: str, advice: str) -> None:
    error = read_error(400, {}, error_body(said))
    assert isinstance(error, RowRefused)
    assert error.about == "run"
    assert advice in str(error)
