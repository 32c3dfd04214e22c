"""What the environment says: API key, OPENAI_BASE_URL, proxies, who started us. Nothing below reads it."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from store.errors import MissingExtra, UsageError, why_unread

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"  # the variable that holds a key unless another is named

SECRET_NAME = re.compile(r"^(?:.*[-_])?(?:key|apikey|token|secret|sig|signature|password|code)$")


def server_values(url: str, key_variable: str) -> dict[str, Any]:
    """Address, key and proxy of one server. Raises UsageError."""
    import urllib.request

    from engine.provider.pricing import is_loopback

    checked, key, proxy, parts = checked_url(url), _key(key_variable), None, urlsplit(url)
    # the proxy that the environment names for this address, as every HTTP client takes it
    if not (is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or "")):
        proxy = urllib.request.getproxies().get(parts.scheme)
    return {"base_url": checked, "api_key": key, "proxy": proxy}


def _key(variable: str) -> str | None:
    key = os.environ.get(variable)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError(f"the API key in {variable} holds characters that no header can carry")
    return key or None


def check_key(variable: str) -> None:
    """Of a variable that somebody has named. Raises UsageError where it is not set, for any server: without
    it the first request would be refused."""
    if variable != OPENAI_KEY and not _key(variable):
        raise UsageError(f"--api-key-env {variable}: this variable is not set; set it, or leave the flag out")


def checked_url(url: str) -> str:
    """The base address, without what people paste around it: blanks, the path of the one call, a fragment.
    A query is kept, for gateways that want one."""
    url = url.strip()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"--base-url {url!r} is not an address; expected for example http://127.0.0.1:8080/v1"
        )
    if parts.username or parts.password:
        raise UsageError("--base-url must not hold a password: give the key with --api-key-env")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_NAME.search(name.lower()):
            raise UsageError(
                f"--base-url must not hold a key (?{name}=…), since addresses are kept in the run folder: "
                "give the key with --api-key-env"
            )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def default_url() -> str:
    return os.environ.get("OPENAI_BASE_URL") or OPENAI_URL


def text_of_file(path: str | Path | None) -> str | None:
    """A prompt's text. Raises UsageError."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --prompt {path}: {why_unread(error)}") from error
    if not text.strip():
        raise UsageError(f"--prompt {path}: the file is empty")
    return text


def start_again(missing: MissingExtra) -> None:
    """By bin/distill, in this process: it takes our place with the same arguments and open files. Returns
    where it did not start us, and where it has installed them already."""
    launcher, tried = os.environ.get("DISTILL_LAUNCHER"), os.environ.get("DISTILL_EXTRAS", "").split()
    if launcher is None or set(missing.extras) <= set(tried):
        return
    os.environ["DISTILL_EXTRAS"] = " ".join([*tried, *missing.extras])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what it starts would inherit that
    sys.stdout.flush()
    os.execv("/bin/sh", ["sh", launcher, *sys.argv[1:]])
