"""A model's answer as HTML in which nothing works but reading.

markdown-it makes the HTML, with HTML in the answer left as text; nh3 then keeps a short list of tags,
in case the first has a hole. Images become words: loading one would tell its server who is reading.
Headings lie below the page's own. The page's content-security policy is the third wall.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape
from typing import Any

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
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False})
    parser.enable(["table", "strikethrough"])
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    return parser


def _heading(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    tokens[at].tag = f"h{min(6, int(tokens[at].tag[1]) + 3)}"
    return str(self.renderToken(tokens, at, options, env))


def _image(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    words, url = escape(tokens[at].content), escape(str(tokens[at].attrs.get("src", "")))
    return f'[image: {words}] <span class="url">({url})</span>'


def _link_close(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    """Where a link leads is said behind it, unless its words say it."""
    start = next(i for i in range(at, -1, -1) if tokens[i].type == "link_open")
    url = str(tokens[start].attrs.get("href", ""))
    said = "".join(token.content for token in tokens[start + 1 : at])
    shown = "" if url in (said, f"mailto:{said}") else f' <span class="url">({escape(url)})</span>'
    return f"</a>{shown}"


def _code(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[at].content)}</code></pre>\n'


def _table_open(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    return '<div class="wide" tabindex="0"><table>\n'


def _table_close(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


_RULES = {
    "heading_open": _heading, "heading_close": _heading, "image": _image, "link_close": _link_close,
    "fence": _code, "code_block": _code, "table_open": _table_open, "table_close": _table_close,
}  # fmt: skip
