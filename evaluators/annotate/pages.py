"""What an annotator sees, and what is done with a vote. Plain forms: works without a script.

A vote is on the disk before the reply that leads on is sent. Which model is on which side is known
here only as `left`, and goes into no page, address or header.

An answer is shown as HTML in which nothing works but reading: markdown-it makes the HTML, with HTML in the
answer left as text; nh3 then keeps a short list of tags, in case the first has a hole. Images become words:
loading one would tell its server who is reading. Headings lie below the page's own. The page's
content-security policy is the third wall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from html import escape
from typing import Any

from aiohttp import web
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

from evaluators.annotate.ballot import (
    AND,
    HERE,
    MISSING,
    NAMELESS,
    NOT_GIVEN,
    UNSAVED,
    PageWords,
    active_seconds,
    chosen,
    places_of,
    read_ballot,
)
from store.errors import StorageError
from store.votes import Votes
from store.votes_schema import LONGEST_NAME, Showing, overview, tidy

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
        texts = self.words.texts
        return self.page(
            "message.html", status, title=texts.get(title, title), message=texts.get(words, words)
        )

    def annotator(self, request: web.Request) -> tuple[int, str]:
        """Number and name. Raises a redirection to the page that asks for a name."""
        given = request.cookies.get(self.who, "")
        number = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else 0
        name = self.votes.name(number)
        if name is None:
            raise web.HTTPSeeOther("/name")
        return number, name

    async def lead(self, request: web.Request) -> web.Response:
        """Who has come how far, for the person who runs the study."""
        told = overview(self.votes.run)
        shares = zip(self.words.criteria, told.pop("agreement"), strict=False)
        return self.page("lead.html", agreement=list(shares), **told)

    async def start(self, request: web.Request) -> web.Response:
        self.annotator(request)
        raise web.HTTPSeeOther("/next")

    async def ask_name(self, request: web.Request) -> web.Response:
        return self.page("name.html", name="", known=False, problem="", longest=LONGEST_NAME)

    async def join(self, request: web.Request) -> web.Response:
        """A new name comes in; one that is known is asked whether it is the same person."""
        form = await request.post()
        name = tidy(str(form.get("name", "")))
        if not name:
            words = self.words.say(NAMELESS)
            return self.page("name.html", 422, name="", known=False, problem=words, longest=LONGEST_NAME)
        if self.votes.find(name) is not None and form.get("known") != "yes":
            return self.page("name.html", 409, name=name, known=True, problem="", longest=LONGEST_NAME)
        response = web.Response(status=303, headers={"Location": "/next"})
        remember(response, self.who, str(self.votes.join(name)))
        return response

    async def following(self, request: web.Request) -> web.Response:
        number, name = self.annotator(request)
        pair = self.votes.next_pair(number)
        if pair is not None:
            raise web.HTTPSeeOther(f"/item/{pair}")
        return self.page("done.html", name=name, progress=self.votes.progress(number))

    async def item(self, request: web.Request) -> web.Response:
        number, name = self.annotator(request)
        showing = self.votes.open(number, _number(request))
        if showing is None:
            raise web.HTTPSeeOther("/next")
        return self.item_page(number, name, showing)

    async def vote(self, request: web.Request) -> web.Response:
        (number, name), pair = self.annotator(request), _number(request)
        form = await request.post()
        showing = self.votes.showing(number, pair)
        if showing is None:
            return self.message(404, *NOT_GIVEN)
        ballot = read_ballot(form, showing.left, self.words.criteria)
        if isinstance(ballot, list):
            last = f" {self.words.say(AND)} "
            titles = last.join(filter(None, (", ".join(ballot[:-1]), ballot[-1])))
            words = self.words.say(MISSING, titles=titles)
            return self.item_page(number, name, showing, form, 422, words)
        try:
            self.votes.cast(number, pair, ballot, active_seconds(form))
        except StorageError:
            return self.item_page(number, name, showing, form, 503, self.words.say(UNSAVED))
        return web.Response(status=303, headers={"Location": "/next"})

    def item_page(
        self,
        number: int,
        name: str,
        showing: Showing,
        form: Mapping[str, object] | None = None,
        status: int = 200,
        problem: str = "",
    ) -> web.Response:
        """With the vote that was cast before, or with a form that could not be taken."""
        pair, ballot, criteria = showing.pair, showing.ballot, self.words.criteria
        if form is None:
            places, note = places_of(ballot, showing.left, criteria), ballot.note if ballot else ""
        else:
            places, note = chosen(form, criteria), str(form.get("note", ""))
        answers = (pair.answer_a, pair.answer_b) if showing.left == "a" else (pair.answer_b, pair.answer_a)
        study = self.votes.study
        return self.page(
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
            progress=self.votes.progress(number),
        )

    async def skip(self, request: web.Request) -> web.Response:
        number, _ = self.annotator(request)
        self.votes.skip(number, _number(request))
        raise web.HTTPSeeOther("/next")

    async def unskip(self, request: web.Request) -> web.Response:
        number, _ = self.annotator(request)
        self.votes.unskip(number)
        raise web.HTTPSeeOther("/next")


def add_routes(app: web.Application, site: Site) -> None:
    """The site's addresses."""
    app.router.add_get(LEAD_PAGE, site.lead)
    app.router.add_get("/", site.start)
    app.router.add_get("/name", site.ask_name)
    app.router.add_post("/name", site.join)
    app.router.add_get("/next", site.following)
    app.router.add_get(r"/item/{item:\d{1,9}}", site.item)
    app.router.add_post(r"/item/{item:\d{1,9}}", site.vote)
    app.router.add_post(r"/item/{item:\d{1,9}}/skip", site.skip)
    app.router.add_post("/skipped", site.unskip)
    app.router.add_static("/static/", HERE / "static")


def _number(request: web.Request) -> int:
    return int(request.match_info["item"])


def remember(response: web.Response, name: str, value: str) -> None:
    """A cookie for a month that only our own pages send and no script reads."""
    response.set_cookie(name, value, max_age=31 * 86400, httponly=True, samesite="Strict", path="/")


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


TAGS = {
    "p", "br", "hr", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s",
    "a", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
}  # fmt: skip
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}, "div": {"tabindex"}, "pre": {"tabindex"}}
CLASSES = {"div": {"wide"}, "span": {"url"}}
SCHEMES = {"http", "https", "mailto"}
LONGEST = 20_000  # characters; a longer answer is shown as plain text, since brackets cost their square


@lru_cache(maxsize=512)
def render(text: str) -> str:
    """Safe HTML of an answer."""
    if not text.strip():
        return '<p class="none">(an empty answer)</p>'
    source = text.replace("\0", "�")
    if len(source) > LONGEST:
        return plain(source)
    return str(_cleaner().clean(_parser().render(source)))


def plain(text: str) -> str:
    """Text as it is, line by line."""
    return f"<pre>{escape(text)}</pre>"


@cache
def _cleaner() -> Any:
    import nh3

    return nh3.Cleaner(
        tags=TAGS,
        attributes=ATTRIBUTES,
        allowed_classes=CLASSES,
        url_schemes=SCHEMES,
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@cache
def _parser() -> Any:
    options = {"html": False, "breaks": True, "linkify": False}
    return MarkdownIt("commonmark", options, renderer_cls=Safe).enable(["table", "strikethrough"])


class Safe(RendererHTML):  # type: ignore[misc]
    """A method for each kind of token that is not shown as markdown-it would."""

    def heading_open(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        tokens[at].tag = f"h{min(6, int(tokens[at].tag[1]) + 3)}"
        return str(self.renderToken(tokens, at, options, env))

    heading_close = heading_open

    def image(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        words, url = escape(tokens[at].content), escape(str(tokens[at].attrs.get("src", "")))
        return f'[image: {words}] <span class="url">({url})</span>'

    def link_close(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        """Where a link leads is said behind it, unless its words say it."""
        start = next(i for i in range(at, -1, -1) if tokens[i].type == "link_open")
        url = str(tokens[start].attrs.get("href", ""))
        said = "".join(token.content for token in tokens[start + 1 : at])
        shown = "" if url in (said, f"mailto:{said}") else f' <span class="url">({escape(url)})</span>'
        return f"</a>{shown}"

    def fence(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        return f'<pre tabindex="0"><code>{escape(tokens[at].content)}</code></pre>\n'

    code_block = fence

    def table_open(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        return '<div class="wide" tabindex="0"><table>\n'

    def table_close(self, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
        return "</table></div>\n"
