"""Sends one request and returns what came, on aiohttp. Every foreign error ends here.

Knows nothing of limits, retries or the ledger. The API key is only ever in the header; no
error text of this module contains headers.
"""

import asyncio
import errno
import os
import socket
import ssl
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohappyeyeballs import AddrInfoType
from multidict import CIMultiDictProxy
from yarl import URL

from engine.provider.errors import BadReply, ConnectionLost, TimedOut

MAX_REPLY_BYTES = 32 * 2**20
SHORTEST_SECRET = 12  # characters
KEPT_BYTES = 64 * 2**10  # of a reply over the limit
WORDS_KEPT = 300
CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 60.0
USER_AGENT = "distill"


class HttpReply(NamedTuple):
    """What came back: status, headers (case-insensitive), body, and seconds it took."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes
    latency: float


def _watched_socket(address: AddrInfoType) -> socket.socket:
    """A socket on which a dead peer is noticed within half a minute of silence."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


class Client:
    """One endpoint: `async with Client(...) as client: await client.send(body, key)`."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        connections: int,
        timeout: float,
        proxy: str | None = None,
    ) -> None:
        base = URL(base_url)
        self._url = base.with_path(base.path.rstrip("/") + "/chat/completions", keep_query=True)
        self._proxy = proxy
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
        }
        self._secret = (api_key or "").encode()
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connections = connections
        # Below the whole, so that a connection (or a TLS handshake) that never comes about is told as that.
        self._connect = min(CONNECT_SECONDS, 0.8 * timeout)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=self._connect)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ttl_dns_cache=300,
            socket_factory=_watched_socket,
        )
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, body: bytes, idempotency_key: str) -> HttpReply:
        """POSTs a chat completion. Raises TimedOut, ConnectionLost or BadReply (torn or huge)."""
        headers = {"Idempotency-Key": idempotency_key}
        started = self._loop.time()
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                raw = await _read_bounded(response)
                if self._secret and self._secret in raw:
                    raw = redacted(raw, self._secret)
                return HttpReply(response.status, response.headers, raw, self._loop.time() - started)
        except BadReply as error:
            raise BadReply(str(error), redacted(error.raw, self._secret)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._mapped(error) from None  # its own text may hold what the server echoed

    def _mapped(self, error: Exception) -> TimedOut | ConnectionLost:
        """A foreign error as one of ours; time-outs are OSErrors too, so they come first."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return ConnectionLost(f"no connection in {self._connect:g} s", maybe_billed=False)
        if isinstance(error, TimeoutError):
            return TimedOut(f"no reply in {self._timeout.total:g} s")
        text = no_connection(error) if isinstance(error, aiohttp.ClientConnectionError) else ""
        echoed = (text or str(error) or type(error).__name__).encode(errors="replace")
        words = redacted(echoed, self._secret).decode()
        if text:
            return ConnectionLost(f"cannot connect to {words}", maybe_billed=False)
        return ConnectionLost(f"connection lost: {words[:WORDS_KEPT]}", maybe_billed=True)


def no_connection(error: aiohttp.ClientConnectionError) -> str:
    """The server's address, and in plain words why there is no connection; empty where there was one."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{error.host}:{error.port}: its TLS certificate is not trusted ({error.certificate_error})"
    if not isinstance(error, aiohttp.ClientConnectorError):
        return ""
    at, cause = f"{error.host}:{error.port}", error.os_error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"{error.host}: this name has no address; check it, and the network"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the proxy {at}: {_reason(cause)}"
    if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
        return f"{at}: it does not speak TLS; try http:// instead of https://"
    return f"{at}: {_reason(cause)}"


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED or isinstance(error, ConnectionRefusedError):
        return "the connection was refused; nothing listens there"
    is_system = error.errno in errno.errorcode and not isinstance(error, ssl.SSLError)
    return os.strerror(error.errno).lower() if is_system and error.errno else str(error)


def redacted(raw: bytes, secret: bytes) -> bytes:
    """A server that echoes our key must not bring it into the ledger. A short key (`none`, `EMPTY`) is not a
    secret, and may be a part of any answer."""
    if len(secret) >= SHORTEST_SECRET and secret in raw:
        return raw.replace(secret, b"[API key]")
    return raw


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > (MAX_REPLY_BYTES if 200 <= response.status < 300 else KEPT_BYTES):
                response.close()
                if not 200 <= response.status < 300:  # a refusal's words stand at its beginning
                    return b"".join(chunks)[:KEPT_BYTES]
                raise BadReply(f"a reply of over {MAX_REPLY_BYTES >> 20} MiB", b"".join(chunks)[:KEPT_BYTES])
    except aiohttp.ClientPayloadError as error:
        if 200 <= response.status < 300 and chunks:
            raise BadReply("the reply was cut off", b"".join(chunks)) from error
        raise
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
