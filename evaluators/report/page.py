"""HTML of a report: one file, everything in it, no script, nothing from elsewhere.

The content-security policy says so too: no host, no script, no frame, no form; the one style sheet is known
by its hash.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from engine.terminal import plain, plain_lines
from evaluators.figures.table import Table
from evaluators.report.document import Report

HERE = Path(__file__).parent
LONGEST = 20_000  # characters of a quoted text


def html(report: Report) -> str:
    """The page. The same report gives the same bytes."""
    style = (HERE / "static" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src-elem 'sha256-{digest}'; style-src-attr 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    found: str = _template().render(report=report, style=style, policy=policy)
    return found.encode("utf-8", "replace").decode()


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"csv_link": csv_link, "line": plain, "quoted": quoted}
    return environment.get_template("report.html")


def csv_link(numbers: Table) -> str:
    """The table as a link that a browser saves."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(numbers.csv.encode()).decode()


def quoted(text: str) -> str:
    """Somebody's words as they are, without control characters, and of a very long text the beginning."""
    shown = plain_lines(text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[:LONGEST]}… ({len(shown) - LONGEST:,} more characters)"
