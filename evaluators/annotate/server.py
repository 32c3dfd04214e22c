"""`distill annotate`: binds, prints the address with its token, serves until it is interrupted.

The token is kept in RUN/annotate.token, so that whoever was voting goes on after a restart.
"""

import asyncio
import errno
import ipaddress
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from engine.subprocesses import stop_signals
from engine.terminal import plain, tell
from evaluators.annotate.auth import Door, guard
from evaluators.annotate.ballot import words_of
from evaluators.annotate.pages import LEAD_PAGE, Site, add_routes, templates
from store.errors import RunFolderError, UsageError
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
    """Serves until it is told to stop. Raises UsageError for an address that cannot be had."""
    if not 0 <= address.port <= 65535:
        raise UsageError(f"--port {address.port}: wants 0 (any that is free) to 65535")
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
        words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
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
        raise RunFolderError(f"cannot keep the token in {path}: {error}") from error
    return token


def hosts_of(address: ListenAddress, port: int) -> frozenset[str]:
    """`name:port` under which requests may come."""
    names = {address.host, *(("localhost", LOOPBACK, "[::1]") if _is_here(address.host) else ())}
    if _is_any(address.host):
        names |= {socket.gethostname(), *_own_addresses()}
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


def _own_addresses() -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return set()


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
        _say_where(votes, address, port, token, lead_token)
        await done.wait()
    finally:
        await runner.cleanup()


def _say_where(votes: Votes, address: ListenAddress, port: int, token: str, lead_token: str) -> None:
    study = votes.study
    words = plain(f"{study.a} against {study.b}, {study.wanted} votes for each pair" if study else "")
    host = LOOPBACK if _is_any(address.host) else address.host
    host = f"[{host}]" if ":" in host else host
    print(f"{words}, at http://{host}:{port}/?token={token} (Ctrl-C ends it)", flush=True)
    print(f"for you, who has voted how far: http://{host}:{port}{LEAD_PAGE}?token={lead_token}", flush=True)
    if not _is_here(address.host) or _is_any(address.host):
        tell("the page is open to the network without encryption: who listens there can read its key\n")
    sys.stdout.flush()
