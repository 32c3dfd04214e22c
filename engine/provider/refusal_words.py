"""The words and codes by which servers refuse, by kind, as data: what a refusal means is decided in
refusals.py. Patterns are searched in lower-case messages and codes."""

import re


def any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


FILTER_CODE = any_of(
    "content.?filter", "content.?policy", "responsibleaipolicy", "data.?inspection", "moderation",
    "sensitive", "prohibited", "guardrail", "flagged", "inappropriate", "jailbreak",
    "content.?(?:violation|security)", "risk.?control", "nsfw", "prompt_illegal", "prompt_blocked",
    "policy_violation", "hooks_failed", "unsafe", "^safety", "^invalid_prompt$", "^cyber_policy",
    "^1301$",  # Zhipu
    "^102[67]$",  # MiniMax
)  # fmt: skip
FILTER_WORDS = any_of(
    "content.?filter", "content management policy", "flagged", "moderation", "inappropriate content",
    "safety (?:system|filter|polic|guideline|setting|reason)", "content polic", "usage polic",
    "responsible ai", "prohibited content", "sensitive (?:content|information|word|data)", "unsafe content",
    r"violat\w+ .{0,60}(?:polic|guideline|terms)", "blocked by .{0,40}(?:guard|filter|safety|polic|moderat)",
    "blocked due to security config",
    "considered high risk", "content exists risk", "guardrail", r"\bnsfw\b", "illegal or sensitive",
    "our safety", "审核不通过", "敏感", "违规", "不安全", "风险",
)  # fmt: skip
# A server that fails in its own words for a filter: what a service of moderation that is down would not say.
FILTER_FAULT = any_of("prohibited_content", "prompt_blocked", "content_policy_violation", "content.?filtered")
# A refusal of everybody, though it may speak of policies.
ACCOUNT = any_of(
    r"\b(?:your|this) (?:account|organi[sz]ation|api key|project|access|team)\b",
    r"\b(?:firewall|waf|ip address|(?:security|network|access|rate limit) polic)",
)
QUOTA_CODE = any_of(
    "insufficient.?(?:quota|balance|credit|fund)", "exceeded_current_quota", "billing", "arrear", "overdue",
    "credits?_exhausted", "payment_required", "budget_exceeded", "spend.?limit", "allocationquota",
    "free_?tier_?only", "not_?enough_?(?:balance|credit)",
    "^1113$",  # Zhipu
    "^1008$",  # MiniMax
)  # fmt: skip
QUOTA_WORDS = any_of(
    "credit balance", "key limit exceeded", "insufficient (?:account )?(?:balance|credit|fund|quota)",
    "(?:out of|no|not enough|more|any) credits", "not enough balance",
    "free (?:tier|quota) .{0,40}(?:exhausted|used up|exceeded)",
    "payment required", "exceeded your current quota",
    "plan and billing", "billing (?:hard )?limit", r"arrears?\b", "overdue", "budget has been exceeded",
    "spend(?:ing)? limit", "usage limits?", "regain access", "suspended", "unpaid", "past.?due",
    "(?:failure|failed) to pay", r"balance (?:is |was )?(?:insufficient|too low|not enough|empty|exhausted)",
    r"(?:negative|zero|low|no) (?:account )?balance\b", "余额不足", "欠费", "可用额度", "充值",
)  # fmt: skip
KEY_CODE = any_of(
    "api_?key_?(?:invalid|expired|revoked|disabled|not_?found)", "(?:invalid|expired)_?api_?key"
)
KEY_WORDS = any_of(
    r"\bapi.?key\b.{0,30}(?:expired|invalid|not valid|revoked|disabled|incorrect|not found|missing|blocked)",
    "(?:invalid|incorrect|expired|wrong|revoked|missing|unknown|no) api.?key",
    r"\b(?:security|access|bearer|session) token\b.{0,60}(?:expired|invalid)",
    "(?:organi[sz]ation|account|project) (?:has been|is|was) (?:disabled|restricted|deactivated|banned)",
)
DAILY = any_of("per.?day", "daily", r"\brpd\b", r"\btpd\b")
GONE_CODE = any_of(
    "model_?not_?found", "deployment_?not_?found", "model_decommissioned", "model_deprecated",
    "no_such_model", "model_not_(?:available|supported)", "modelnotopen", "invalid_model", "model_retired",
)  # fmt: skip
_IS_GONE = (
    "not (?:be )?found|shut ?down|does ?n.t exist|does not exist|no longer (?:available|supported)|retired"
    "|decommissioned|deprecated|not available|is not a valid|(?:is|was) unknown|not exist|have access"
    "|end of its life|not supported by any provider|not supported for generate|不存在|已下线"
)
GONE_WORDS = any_of(
    rf"\b(?:model|deployment)\b.{{0,120}}?(?:{_IS_GONE})",
    "no (?:endpoints|allowed providers|available (?:channels?|providers)) .{0,20}(?:found|for|available)",
    r"\bmodel\b.{0,60}?(?:was|is|has been) (?:removed|unloaded|not loaded|discontinued|sunset|turned off)",
    "no models? (?:is |are |currently )?loaded", "(?:unknown|invalid|no such|unsupported) model",
    "not a valid model", "(?:not a chat|does not work with the specified) model", "模型不存在",
)  # fmt: skip
TOO_LARGE = any_of(
    "context.?(?:length|window|size)", "maximum (?:prompt|input|context|number of (?:input )?tokens)",
    "too many (?:input )?tokens", "string.above.max", "range of input length", "payload too large",
    r"(?:prompt|input|message|request|string|content)\w* (?:is |are |was )?too (?:long|large)",
    "(?:input|prompt) (?:token count|length)? ?.{0,40}exceed", "entity too large",
    "exceed(?:s|ed|ing)? .{0,40}(?:context|token limit|maximum length)", "payload size exceeds",
    "reduce the length of", r"\btokens? .{0,40}must be (?:<=|less)", "超过.{0,10}长度", "超长",
)  # fmt: skip
TOO_LARGE_CODE = any_of("context_length", "string_above_max")
PARAMETER = any_of(
    "unsupported", "not support", "does ?n.t support", "unrecogni[sz]ed", "unknown", "unexpected",
    "not permitted", "not allowed", "cannot (?:both )?be", "both be specified", "may only be",
    "only the default", "deprecated", "extra inputs", "must be 1", "invalid (?:parameter|value|argument)",
    "unavailable", "not enabled", "not available", "is too large", "out of range", "is not a valid",
    "should be", "less than or equal", "no longer supported", "valid range", "only .{1,12} is allowed",
    "must be unset", "maximum allowed", "parameter .{0,40}does not exist",
)  # fmt: skip
PARAMETERS = (
    "max_completion_tokens", "max_tokens", "temperature", "top_p", "reasoning_effort", "service_tier",
    "response_format", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "logit_bias",
    "seed", "stop", "top_k", "thinking", "reasoning",
)  # fmt: skip
SYSTEM = any_of("(?:system|developer) (?:role|message|prompt|instruction)s?")
AS_STATUS = {
    "rate_limit_exceeded": 429, "rate_limit_error": 429, "resource_exhausted": 429, "too_many_requests": 429,
    "insufficient_quota": 429, "unavailable": 503, "service_unavailable": 503, "overloaded_error": 529,
    "overloaded": 529, "engine_overloaded": 503, "internal": 500, "internal_error": 500, "server_error": 500,
    "api_error": 500, "internal_server_error": 500, "deadline_exceeded": 504, "timeout": 504,
    "timeout_error": 504, "bad_gateway": 502, "upstream_error": 502, "provider_error": 502,
    "invalid_argument": 400, "invalid_request_error": 400, "bad_request": 400, "badrequesterror": 400,
    "failed_precondition": 400, "context_length_exceeded": 400, "unauthenticated": 401,
    "authentication_error": 401, "invalid_api_key": 401, "permission_denied": 403, "permission_error": 403,
    "forbidden": 403, "not_found": 404, "not_found_error": 404, "model_not_found": 404,
    "request_too_large": 413, "payment_required": 402, "insufficient_balance": 402,
}  # fmt: skip
# A reply of 200 that ended so has failed; what has arrived of its text is not an answer.
FAILED_FINISH = any_of(
    "^error$", "^internal_?error$", "^fail(?:ed|ure)$", "^abort(?:ed)?$", "^cancell?ed$", "^network_?error$",
    "^insufficient_system_resource$", "^server_?error$", "^timeout$", "^(?:upstream|provider)_?error$",
    "^unavailable$", "^interrupted$", "^load_shed$",
)  # fmt: skip
