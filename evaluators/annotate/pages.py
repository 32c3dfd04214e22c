"""What an annotator sees, and what is done with a vote. Plain forms: works without a script.

A vote is on the disk before the reply that leads on is sent. Which model is on which side is known
here only as `left`, and goes into no page, address or header.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiohttp import web

from evaluators.annotate.auth import remember
from evaluators.annotate.ballot import (
    HERE,
    NAMELESS,
    PageWords,
    active_seconds,
    chosen,
    places_of,
    read_ballot,
)
from evaluators.annotate.markdown import render
from store.errors import StorageError
from store.votes import Votes
from store.votes_queries import overview
from store.votes_schema import LONGEST_NAME, Showing, tidy

LEAD_PAGE = "/lead"
Page = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages stand on. who: the name of the cookie that says which annotator it is."""

    votes: Votes
    templates: Any
    who: str
    words: PageWords

    def page(self, template: str, status: int = 200, /, **values: Any) -> web.Response:
        text = self.templates.get_template(template).render(
            words=self.words.criteria, page=self.words, t=self.words.say, **values
        )
        return web.Response(text=text, status=status, content_type="text/html")

    def message(self, status: int, title: str, words: str) -> web.Response:
        return self.page("message.html", status, title=title, message=words)

    def annotator(self, request: web.Request) -> tuple[int, str]:
        """Number and name. Raises a redirection to the page that asks for a name."""
        given = request.cookies.get(self.who, "")
        number = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else 0
        name = self.votes.name(number)
        if name is None:
            raise web.HTTPSeeOther("/name")
        return number, name


def templates() -> Any:
    """jinja2 with everything escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["moment"] = lambda seconds: datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    return found


def add_routes(app: web.Application, site: Site) -> None:
    """The site's addresses."""

    async def start(request: web.Request) -> web.Response:
        site.annotator(request)
        raise web.HTTPSeeOther("/next")

    async def ask_name(request: web.Request) -> web.Response:
        return site.page("name.html", name="", known=False, problem="", longest=LONGEST_NAME)

    async def join(request: web.Request) -> web.Response:
        return _join(site, await request.post())

    async def following(request: web.Request) -> web.Response:
        number, name = site.annotator(request)
        pair = site.votes.next_pair(number)
        if pair is not None:
            raise web.HTTPSeeOther(f"/item/{pair}")
        return site.page("done.html", name=name, progress=site.votes.progress(number))

    async def item(request: web.Request) -> web.Response:
        number, name = site.annotator(request)
        showing = site.votes.open(number, _number(request))
        if showing is None:
            raise web.HTTPSeeOther("/next")
        return _item(
            site,
            number,
            name,
            showing,
            places_of(showing.ballot, showing.left, site.words.criteria),
            _note(showing),
        )

    async def vote(request: web.Request) -> web.Response:
        return _vote(site, *site.annotator(request), _number(request), await request.post())

    async def skip(request: web.Request) -> web.Response:
        number, _ = site.annotator(request)
        site.votes.skip(number, _number(request))
        raise web.HTTPSeeOther("/next")

    async def unskip(request: web.Request) -> web.Response:
        number, _ = site.annotator(request)
        site.votes.unskip(number)
        raise web.HTTPSeeOther("/next")

    async def lead(request: web.Request) -> web.Response:
        return _lead(site)

    app.router.add_get(LEAD_PAGE, lead)
    app.router.add_get("/", start)
    app.router.add_get("/name", ask_name)
    app.router.add_post("/name", join)
    app.router.add_get("/next", following)
    app.router.add_get(r"/item/{item:\d{1,9}}", item)
    app.router.add_post(r"/item/{item:\d{1,9}}", vote)
    app.router.add_post(r"/item/{item:\d{1,9}}/skip", skip)
    app.router.add_post("/skipped", unskip)
    app.router.add_static("/static/", HERE / "static")


def _lead(site: Site) -> web.Response:
    """Who has come how far, for the person who runs the study."""
    told = overview(site.votes.run)
    shares = zip(site.words.criteria, told.pop("agreement"), strict=False)
    return site.page("lead.html", agreement=list(shares), **told)


def _number(request: web.Request) -> int:
    return int(request.match_info["item"])


def _note(showing: Showing) -> str:
    return showing.ballot.note if showing.ballot else ""


def _join(site: Site, form: Mapping[str, object]) -> web.Response:
    """A new name comes in; one that is known is asked whether it is the same person."""
    name = tidy(str(form.get("name", "")))
    if not name:
        words = site.words.say(NAMELESS)
        return site.page("name.html", 422, name="", known=False, problem=words, longest=LONGEST_NAME)
    if site.votes.find(name) is not None and form.get("known") != "yes":
        return site.page("name.html", 409, name=name, known=True, problem="", longest=LONGEST_NAME)
    response = web.Response(status=303, headers={"Location": "/next"})
    remember(response, site.who, str(site.votes.join(name)))
    return response


def _vote(site: Site, number: int, name: str, pair: int, form: Mapping[str, object]) -> web.Response:
    showing = site.votes.showing(number, pair)
    if showing is None:
        return site.message(404, "Not your item", "This pair of answers was not given to you.")
    ballot = read_ballot(form, showing.left, site.words.criteria)
    note = str(form.get("note", ""))
    if isinstance(ballot, list):
        titles = " and ".join(filter(None, (", ".join(ballot[:-1]), ballot[-1])))
        words = site.words.say(
            "Please choose for {titles} as well. Nothing has been saved yet.", titles=titles
        )
        return _item(site, number, name, showing, chosen(form, site.words.criteria), note, 422, words)
    try:
        site.votes.cast(number, pair, ballot, active_seconds(form))
    except StorageError:
        words = "Your vote could not be saved. Your choices are still here: please tell the person who runs \
this, and try again in a while."
        return _item(site, number, name, showing, chosen(form, site.words.criteria), note, 503, words)
    return web.Response(status=303, headers={"Location": "/next"})


def _item(
    site: Site, number: int, name: str, showing: Showing, places: Mapping[str, str], note: str,
    status: int = 200, problem: str = "",
) -> web.Response:  # fmt: skip
    pair = showing.pair
    answers = (pair.answer_a, pair.answer_b) if showing.left == "a" else (pair.answer_b, pair.answer_a)
    study = site.votes.study
    return site.page(
        "item.html",
        status,
        name=name,
        draft=f"{study.folder if study else ''}/{number}/{pair.id}",
        showing=showing,
        pair=pair,
        answers=answers,
        rendered=tuple(map(render, answers)),
        places=places,
        note=note,
        problem=problem,
        progress=site.votes.progress(number),
    )
