"""A request's key: SHA-256 of the canonical JSON of what is sent and the sample's index.

Canonical: sorted names, no spaces, UTF-8, whole numbers without a fraction (RFC 8785's
choice, so that temperature 1 and 1.0 are one request). What is not sent (stage, endpoint,
position in the pool, limits) cannot matter, since it is not in here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from store.records import Message

KEY_VERSION = 1  # of the way in which a key is made; a change asks everything again
_SORTED = orjson.OPT_SORT_KEYS


def canonical(value: Any) -> Any:
    """The same value with whole floats as integers, at any depth."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {k: canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    return value


class Sealer:
    """Seals the requests of one stage: the same model and parameters, many messages.

    The body and the key's JSON share the bytes of the messages, which are written once.
    """

    def __init__(self, model: str, params: Mapping[str, Any]) -> None:
        fixed = orjson.dumps({"model": model, **params})
        self._body_tail = b"," + fixed[1:]
        name = orjson.dumps(model)
        sorted_params = orjson.dumps(canonical(params), option=_SORTED)
        self._key_tail = b',"model":' + name + b',"params":' + sorted_params

    def seal(
        self, messages: Sequence[Message], samples: int, response_format: Mapping[str, Any] | None = None
    ) -> tuple[bytes, list[bytes]]:
        """(body, keys): the JSON to send, and the 32-byte key of each of the samples.

        response_format: the JSON schema that the reply must follow, where the row has one. Its names stay
        in their order, which is the order in which the model writes.
        """
        head = b'{"messages":' + orjson.dumps(messages, option=_SORTED)
        extra = b""
        if response_format:
            extra = b',"response_format":' + orjson.dumps(response_format)
        digest = hashlib.sha256(head + self._key_tail + extra + b',"sample":')
        keys = []
        for sample in range(samples):
            one = digest.copy()
            one.update(b"%d}" % sample)
            keys.append(one.digest())
        return head + extra + self._body_tail, keys
