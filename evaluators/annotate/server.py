"""`distill annotate`: binds, prints the address with its token, serves until it is interrupted.

The token is kept in RUN/annotate.token, so that whoever was voting continues after a restart. It opens the
door once (`/?token=…`, taken out of the address at once) and then lives in a cookie that no script reads and
no other site sends. A page of another site can neither read (the Host must be ours: DNS rebinding) nor write
(a POST must come from our own page: CSRF).
"""

import asyncio
import errno
import hmac
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from engine.subprocesses import stop_signals
from engine.terminal import plain, tell
from evaluators.annotate.ballot import DISK, FOREIGN_FORM, NO_KEY, NO_PAGE, WRONG_HOST, words_of
from evaluators.annotate.pages import LEAD_PAGE, Site, add_routes, remember, templates
from store.errors import RunFolderError, StorageError, UsageError, why_unread
from store.votes import Votes

TOKEN_FILE, LEAD_FILE = "annotate.token", "annotate.lead-token"
LOOPBACK = "127.0.0.1"
LARGEST_FORM = 256 * 2**10


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen, and under which other names people reach us (a proxy's)."""

    host: str
    port: int
    names: tuple[str, ...] = ()


def serve(votes: Votes, run: Path, address: ListenAddress) -> None:
    """Serves until it is told to stop. Raises UsageError for an address that cannot be used."""
    if not 0 <= address.port <= 65535:
        raise UsageError(f"--port {address.port}: must be from 0 to 65535 (0 picks a free port)")
    bound = bind(address)
    with asyncio.Runner() as runner:
        runner.run(_serve(votes, bound, run, address))


def bind(address: ListenAddress) -> socket.socket:
    """A listening socket."""
    try:
        family, *_, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {address.host}: no such address here ({error.strerror})") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(where)
        bound.listen()
    except OSError as error:
        bound.close()
        words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise UsageError(f"port {address.port} on {address.host} {words}; name another with --port, or 0 "
                         "for any that is free") from None  # fmt: skip
    return bound


def token_of(run: Path, name: str = TOKEN_FILE) -> str:
    """A token of the folder, made when it is first asked for; readable by its owner only."""
    path = run / name
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
            token = file.read().strip()
            if len(token) < 16:
                file.seek(0)
                file.truncate()
                token = secrets.token_urlsafe(24)
                file.write(token + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot keep the token in {path}: {why_unread(error)}") from error
    return token


def hosts_of(address: ListenAddress, port: int) -> frozenset[str]:
    """`name:port` under which requests may come."""
    names = {address.host, *(("localhost", LOOPBACK, "[::1]") if _is_here(address.host) else ())}
    if _is_any(address.host):
        names.add(socket.gethostname())
        with suppress(OSError):  # of a machine that does not know its own name
            names |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    own = {f"[{name}]:{port}" if ":" in name and name[0] != "[" else f"{name}:{port}" for name in names}
    return frozenset(name.lower() for name in (*own, *address.names))


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _is_here(host: str) -> bool:
    """Whether loopback leads to it."""
    if host == "localhost" or _is_any(host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # no-referrer would make a form's Origin `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
    "Server": "distill",
}
OPEN = ("/static/", "/favicon.ico")  # nothing of the run is there
Show = Callable[[int, str, str], web.Response]  # status, title, words -> a page


@dataclass(frozen=True, slots=True)
class Door:
    """token: what opens it. hosts: under which names we are reached (`name:port`). cookie: its name. start:
    the page to which it leads."""

    token: str
    hosts: frozenset[str]
    cookie: str
    show: Show
    start: str = "/"


def guard(everybody: Door, lead: Door) -> Middleware:
    """The middleware. Refusals are pages like the others. The page of `lead` has a key of its own."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        door = lead if request.path == lead.start else everybody
        try:
            response = _refusal(door, request) or await handler(request)
        except web.HTTPRedirection as redirection:
            redirection.headers.update(HEADERS)
            raise
        except web.HTTPException as error:
            told = NO_PAGE if error.status == 404 else (error.reason, error.reason)
            response = door.show(error.status, *told)
        except StorageError:
            response = door.show(503, *DISK)
        response.headers.update(HEADERS)
        return response

    return guarded


def _refusal(door: Door, request: web.Request) -> web.Response | None:
    """A page, or the redirection of somebody who has just shown the token, or None to continue."""
    if request.host.lower() not in door.hosts:
        return door.show(403, *WRONG_HOST)
    if request.method not in ("GET", "HEAD"):  # every browser names the page from which a form was sent
        _, _, origin = request.headers.get("Origin", "").partition("://")
        if origin.lower() != request.host.lower():
            return door.show(403, *FOREIGN_FORM)
    if request.path.startswith(OPEN):
        return None
    shown = request.query.get("token") if request.path == door.start else None
    token = shown if shown is not None else request.cookies.get(door.cookie, "")
    if not hmac.compare_digest(token.encode(errors="replace"), door.token.encode()):
        return door.show(403, *NO_KEY)
    if shown is None:
        return None
    response = web.Response(status=303, headers={"Location": door.start})  # the address without the token
    remember(response, door.cookie, token)
    return response


def application(
    votes: Votes, token: str, hosts: frozenset[str], port: int, lead_token: str
) -> web.Application:
    """The site. Cookies are named after the port, for on one machine all ports share theirs."""
    site = Site(votes, templates(), f"annotator_{port}", words_of(votes.page_words))
    door = Door(token, hosts, f"token_{port}", site.message)
    lead = Door(lead_token, hosts, f"lead_{port}", site.message, LEAD_PAGE)
    app = web.Application(middlewares=[guard(door, lead)], client_max_size=LARGEST_FORM)
    add_routes(app, site)
    return app


async def _serve(votes: Votes, bound: socket.socket, run: Path, address: ListenAddress) -> None:
    done = asyncio.Event()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    port = bound.getsockname()[1]
    token, lead_token = token_of(run), token_of(run, LEAD_FILE)
    app = application(votes, token, hosts_of(address, port), port, lead_token)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.SockSite(runner, bound).start()
        study = votes.study
        words = plain(f"{study.a} against {study.b}, {study.wanted} votes for each pair" if study else "")
        host = LOOPBACK if _is_any(address.host) else address.host
        site = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"{words}, at {site}/?token={token} (Ctrl-C ends it)", flush=True)
        print(f"for you, to see who has voted and how far: {site}{LEAD_PAGE}?token={lead_token}", flush=True)
        if not _is_here(address.host) or _is_any(address.host):
            tell("the page is open to the network without encryption: anyone there can read its key\n")
        sys.stdout.flush()
        await done.wait()
    finally:
        await runner.cleanup()
