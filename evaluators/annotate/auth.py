"""Who gets in, and what every reply says to the browser.

The token opens the door once (`/?token=…`, taken out of the address at once) and then lives in a
cookie that no script reads and no other site sends. A page of another site can neither read (the
Host must be ours: DNS rebinding) nor write (a POST must come from our own page: CSRF).
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from store.errors import StorageError

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
        refused = _refusal(door, request)
        try:
            response = refused or await _answered(door, request, handler)
        except web.HTTPRedirection as redirection:
            _harden(redirection.headers)
            raise
        _harden(response.headers)
        return response

    return guarded


def _harden(headers: CIMultiDict[str]) -> None:
    for name, value in HEADERS.items():
        headers[name] = value


async def _answered(door: Door, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        words = "There is no such page." if error.status == 404 else error.reason
        return door.show(error.status, error.reason, words)
    except StorageError:
        words = (
            "The disk does not take it. What was saved before is safe: please tell the person who runs this."
        )
        return door.show(503, "Nothing can be saved", words)


def _refusal(door: Door, request: web.Request) -> web.Response | None:
    """A page, or the redirection of somebody who has just shown the token, or None to go on."""
    if request.host.lower() not in door.hosts:
        return door.show(403, "Wrong address", "This server is not reached under this name.")
    if request.method not in ("GET", "HEAD") and not _is_own_page(request):
        return door.show(403, "Refused", "A vote can only be sent from the voting page itself.")
    if request.path.startswith(OPEN):
        return None
    if (token := request.query.get("token")) is not None and request.path == door.start:
        return _let_in(door, token) if _is(door, token) else _closed(door)
    return None if _is(door, request.cookies.get(door.cookie, "")) else _closed(door)


def _is(door: Door, token: str) -> bool:
    return hmac.compare_digest(token.encode(errors="replace"), door.token.encode())


def _is_own_page(request: web.Request) -> bool:
    """Every browser names the page from which a form was sent."""
    _, _, origin = request.headers.get("Origin", "").partition("://")
    return bool(origin) and origin.lower() == request.host.lower()


def _closed(door: Door) -> web.Response:
    return door.show(
        403, "This page needs its key", "Open it with the complete address that you were given (…/?token=…)."
    )


def _let_in(door: Door, token: str) -> web.Response:
    """The cookie, and the address without the token."""
    response = web.Response(status=303, headers={"Location": door.start})
    remember(response, door.cookie, token)
    return response


def remember(response: web.Response, name: str, value: str) -> None:
    """A cookie for a month that only our own pages send and no script reads."""
    response.set_cookie(name, value, max_age=31 * 86400, httponly=True, samesite="Strict", path="/")
