"""The voting page over HTTP: who gets in, what is given to whom, and that no vote is ever lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
from pathlib import Path
from time import process_time

import pytest

pytest.importorskip("nh3", reason="the extra `evaluate` is not installed")
pytest.importorskip("markdown_it", reason="the extra `evaluate` is not installed")


from evaluators.annotate.ballot import HERE, TEXT, read_words
from evaluators.annotate.command import Files, run_page
from evaluators.annotate.pages import LONGEST, render
from evaluators.annotate.server import LEAD_FILE, ListenAddress
from store.answer_sets import judge_contests
from store.errors import DistillError, UsageError
from store.records import Contest
from store.votes import KEPT_SECONDS
from store.votes_schema import Ballot
from tests.support.annotating import (
    LEAD_TOKEN,
    NAMES,
    TOKEN,
    Clock,
    human,
    opened,
    page,
    person,
    served,
    votes_in,
    write_study,
)
from tests.support.cli import distill, until

ALL = ("left", "tie", "right")
TEXTS = sorted({t for page in (HERE / "templates").glob("*.html") for t in TEXT.findall(page.read_text())})


async def test_nobody_gets_in_without_the_token(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site) as stranger:
        for path in ("/", "/next", "/name", "/item/1", "/?token=wrong", "/?token=", "/nowhere"):
            status, text, _ = await stranger.get(path)
            assert status == 403, path
            assert "Question" not in text
        assert (await stranger.post("/name", {"name": "Eve"}))[0] == 403
        status, _, path = await stranger.get(f"/?token={TOKEN}")
        assert (status, path) == (200, "/name")


async def test_the_token_leaves_the_address_for_a_cookie_that_no_script_reads(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site) as ann:
        target = f"{site.url}/?token={TOKEN}"
        async with ann.session.get(target, allow_redirects=False) as response:
            assert response.status == 303
            assert response.headers["Location"] == "/"
            cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie


async def test_another_sites_page_can_neither_vote_nor_read(tmp_path: Path) -> None:
    """CSRF and DNS rebinding, with a browser that would send the cookie all the same."""
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        item = await ann.following()
        form = {"helpful": "left", "honest": "left", "harmless": "left"}
        port = site.url.rpartition(":")[2]
        for origin in ("http://evil.example", "null", "", f"http://evil.example:{port}", site.url + "1"):
            assert (await ann.post(f"/item/{item}", form, Origin=origin))[0] == 403, origin
        status, text, _ = await ann.get(f"/item/{item}", headers={"Host": f"evil.example:{port}"})
        assert status == 403
        assert "Question" not in text
        assert votes_in(tmp_path / "run") == ()
        assert (await ann.get(f"/item/{item}", headers={"Host": f"localhost:{port}"}))[0] == 200


async def test_every_reply_says_what_a_browser_may_do(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        for path in ("/", "/next", "/nowhere", "/static/annotate.css", "/?token=wrong"):
            async with ann.session.get(site.url + path) as response:
                policy = response.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'"), path
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cache-Control"] == "no-store"


async def test_the_models_are_in_no_page_address_or_header(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        seen = []
        while (item := await ann.following()) is not None:
            async with ann.session.get(f"{site.url}/item/{item}") as response:
                seen.append(f"{response.headers} {response.url} {await response.text()}")
            await ann.vote(item, *ALL)
        seen.append((await ann.get("/next"))[1])
        assert len(seen) == 4
        assert "Question 1?" in "".join(seen)
        assert not [name for name in NAMES if name in "".join(seen)]


async def test_a_vote_is_on_the_disk_before_the_next_page_shows(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        item = await ann.following()
        form = {"helpful": "left", "honest": "tie", "harmless": "right", "note": "Çüş\r\n<b>"}
        async with ann.session.post(
            f"{site.url}/item/{item}", data=form, headers={"Origin": site.url}, allow_redirects=False
        ) as response:
            assert response.status == 303
        (vote,) = votes_in(tmp_path / "run")
        other = "b" if vote.left == "a" else "a"
        assert (vote.helpful, vote.honest, vote.harmless) == (vote.left, "tie", other)
        assert (vote.annotator, vote.pair, vote.note) == ("Ann", item, "Çüş\n<b>")


async def test_a_vote_names_the_model_whose_answer_stood_there(tmp_path: Path) -> None:
    async with page(tmp_path / "run", count=12) as site, person(site, "Ann") as ann:
        shown = {}
        while (item := await ann.following()) is not None:
            _, text, _ = await ann.get(f"/item/{item}")
            left = text.index('id="left"')
            shown[item] = "a" if text.index("by the one", left) < text.index("by the other", left) else "b"
            await ann.vote(item, "left", "right", "tie")
        votes = votes_in(tmp_path / "run")
        assert {vote.pair: vote.helpful for vote in votes} == shown
        assert all({vote.helpful, vote.honest} == {"a", "b"} for vote in votes)
        assert set(shown.values()) == {"a", "b"}


async def test_an_incomplete_vote_keeps_what_was_chosen_and_says_what_is_missing(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        item = await ann.following()
        status, text, _ = await ann.post(
            f"/item/{item}", {"helpful": "right", "honest": "both", "note": "half"}
        )
        assert status == 422
        assert "Please choose for Honest and Harmless" in text
        assert re.search(r'name="helpful" value="right" required checked', text)
        assert ">half</textarea>" in text
        assert votes_in(tmp_path / "run") == ()


async def test_a_changed_vote_replaces_the_first_and_both_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with page(run) as site, person(site, "Ann") as ann:
        first = await ann.following()
        second = await ann.vote(first, "left", "left", "left", note="first")
        _, text, _ = await ann.get(second)
        assert f'href="/item/{first}"' in text  # back
        _, text, _ = await ann.get(f"/item/{first}")
        assert text.count("checked") == 4  # three choices, and the box that turns the keys on
        assert await ann.vote(first, "tie", "tie", "tie") == second
        await ann.vote(first, "tie", "tie", "tie")  # a second press of the button says nothing new
    (vote,) = votes_in(run)
    assert (vote.helpful, vote.note) == ("tie", "")
    with sqlite3.connect(run / "votes.db") as db:
        assert db.execute("SELECT note FROM votes ORDER BY id").fetchall() == [("first",), ("",)]
    db.close()


async def test_what_is_skipped_comes_back_only_when_asked_for(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        skipped = await ann.following()
        await ann.post(f"/item/{skipped}/skip", {})
        for _ in range(2):
            item = await ann.following()
            assert item not in (None, skipped)
            await ann.vote(item, *ALL)
        assert await ann.following() is None
        assert "Pairs that you skipped: 1." in (await ann.get("/next"))[1]
        assert (await ann.post("/skipped", {}))[2] == f"/item/{skipped}"
        assert await ann.vote(skipped, *ALL) == "/next"
        assert "All done" in (await ann.get("/next"))[1]


async def test_pairs_that_were_not_given_to_a_person_are_not_theirs(tmp_path: Path) -> None:
    async with page(tmp_path / "run", count=5) as site, person(site, "Ann") as ann:
        item = await ann.following()
        for other in {1, 2, 3, 4, 5, 77} - {item}:
            assert (await ann.get(f"/item/{other}"))[2] == f"/item/{item}"
            form = dict.fromkeys(("helpful", "honest", "harmless"), "left")
            assert (await ann.post(f"/item/{other}", form))[0] == 404
        assert votes_in(tmp_path / "run") == ()


async def test_a_name_that_is_known_is_asked_whether_it_is_the_same_person(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann, person(site) as other:
        await ann.vote(await ann.following(), *ALL)
        await other.get(f"/?token={TOKEN}")
        status, text, _ = await other.post("/name", {"name": "  aNN "})
        assert status == 409
        assert "Is that you?" in text
        await other.post("/name", {"name": "ann", "known": "yes"})
        assert "1 done" in (await other.get("/next"))[1]
        for empty in ("", "   ", "\u202e\u0007"):
            assert (await other.post("/name", {"name": empty}))[0] == 422


async def test_each_pair_is_seen_by_as_many_people_as_wanted(tmp_path: Path) -> None:
    """Five people at once, each clicking on until nothing is left."""
    run = tmp_path / "run"

    async def work(site: object, name: str) -> None:
        async with person(site, name) as someone:  # type: ignore[arg-type]
            while (item := await someone.following()) is not None:
                await someone.vote(item, *ALL)

    async with page(run, count=6, wanted=3) as site:
        await asyncio.gather(*(work(site, f"P{n}") for n in range(5)))
    votes = votes_in(run)
    assert len({(vote.pair, vote.annotator) for vote in votes}) == len(votes) == 18
    assert {pair: sum(v.pair == pair for v in votes) for pair in range(1, 7)} == dict.fromkeys(range(1, 7), 3)


async def test_two_people_racing_for_the_last_place_do_not_both_get_it(tmp_path: Path) -> None:
    async with (
        page(tmp_path / "run", count=1, wanted=1) as site,
        person(site, "Ann") as ann,
        person(site, "Bob") as bob,
    ):
        given = await asyncio.gather(ann.following(), bob.following())
        assert sorted(given, key=str) == [1, None]
        loser = ann if given[0] is None else bob
        assert "Nothing for you just now" in (await loser.get("/next"))[1]


def test_a_place_is_given_away_when_nobody_came_back_for_it(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path / "run", count=1, wanted=1, clock=clock) as votes:
        ann, bob = votes.join("Ann"), votes.join("Bob")
        assert votes.next_pair(ann) == 1
        clock.now += KEPT_SECONDS - 1
        assert votes.next_pair(bob) is None
        assert votes.next_pair(ann) == 1  # who is still there keeps it
        clock.now += KEPT_SECONDS + 1
        assert votes.next_pair(bob) == 1
        assert votes.next_pair(ann) is None
        assert votes.cast(ann, 1, Ballot("a", "a", "a"))  # late, and not lost
        assert votes.cast(bob, 1, Ballot("b", "b", "b"))
        assert votes.count == 2


def test_pairs_with_the_fewest_votes_come_first(tmp_path: Path) -> None:
    with opened(tmp_path / "run", count=4, wanted=3) as votes:
        ann, bob = votes.join("Ann"), votes.join("Bob")
        seen = []
        for _ in range(2):
            seen.append(votes.next_pair(ann))
            votes.cast(ann, seen[-1] or 0, Ballot("a", "tie", "b"))
        assert votes.next_pair(bob) not in seen


def test_sides_are_drawn_for_each_person_and_pair_from_the_seed(tmp_path: Path) -> None:
    def sides(folder: str, name: str, seed: int) -> str:
        with opened(tmp_path / folder, count=40, seed=seed) as votes:
            me = votes.join(name)
            found = {}
            while (pair := votes.next_pair(me)) is not None:
                showing = votes.open(me, pair)
                assert showing
                found[pair] = showing.left
                votes.skip(me, pair)
            return "".join(found[pair] for pair in sorted(found))

    ann = sides("one", "Ann", 1)
    assert ann == sides("two", "Ann", 1)
    assert len({ann, sides("three", "Bob", 1), sides("four", "Ann", 2)}) == 3
    assert 10 <= ann.count("a") <= 30


@pytest.mark.parametrize("piece", ["[", "![a](", "[a](http://x.y/z) ", "*a_ ", "<a ", ">", "`a``b", "|a"])
def test_no_answer_keeps_the_others_waiting(piece: str) -> None:
    """Some Markdown costs the square of its length; what is too long for that is shown as it is."""
    began = process_time()
    short, long = render(piece * (LONGEST // len(piece))), render(piece * (LONGEST + 1))
    assert process_time() - began < 6
    assert short
    assert long.startswith("<pre>")
    assert "<a " not in long


async def test_a_kill_loses_no_vote_and_who_was_voting_goes_on(tmp_path: Path) -> None:
    run, flags = tmp_path / "run", write_study(tmp_path / "files", 4)
    async with served(run, *flags, "--votes", 1) as (command, site), person(site, "Ann") as ann:
        voted = await ann.following()
        await ann.vote(voted, *ALL, note="kept")
        open_item = await ann.following()
        command.send(signal.SIGKILL)
        await command.process.wait()
        port = site.url.rpartition(":")[2]
        async with served(run, "--port", port) as (_, again):
            assert again.token == site.token
            await ann.vote(open_item, *ALL)  # the page that was open when the server died
            assert await ann.following() not in (voted, open_item)
    assert [(vote.pair, vote.note) for vote in sorted(votes_in(run), key=lambda v: v.cast_at)] == [
        (voted, "kept"),
        (open_item, ""),
    ]


async def test_an_interrupt_says_how_many_votes_are_in(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with served(run, *write_study(tmp_path / "files")) as (command, site), person(site, "Ann") as ann:
        await ann.vote(await ann.following(), *ALL)
        command.send(signal.SIGINT)
        ended = await command.ended()
    assert ended.code == 0
    assert "1 vote in" in ended.err
    assert site.token not in ended.err
    assert ended.out.count(site.token) == 1
    assert os.stat(run / "annotate.token").st_mode & 0o077 == 0


async def test_bad_input_is_said_in_words(tmp_path: Path) -> None:
    run, flags = tmp_path / "run", write_study(tmp_path / "files")
    questions, a = map(str, flags[1:4:2])
    with opened(run):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = await distill("annotate", "--run", run, "--port", port)
    assert (ended.code, f"port {port} on 127.0.0.1 is in use" in ended.err) == (2, True)

    def refused(words: str, folder: Path = run, port: int = 0, **told: object) -> None:
        files = Files(
            **(dict.fromkeys(("questions", "answers", "against", "votes", "seed")) | told), names=()
        )  # type: ignore[arg-type]
        with pytest.raises(DistillError, match=words) as found:
            run_page(files, folder, ListenAddress("127.0.0.1", port))
        assert found.value.exit_code == 2

    with opened(run):
        refused("in use by process")
    other = map(str, write_study(tmp_path / "others", 2)[1::2])
    refused(
        "votes on other questions or answers",
        **dict(zip(("questions", "answers", "against"), other, strict=True)),
    )
    refused("drawn with seed 0", seed=7)
    refused("--votes 0: must be 1 or more", votes=0)
    refused("--port 70000: must be", port=70000)
    refused("give --questions", tmp_path / "new")
    refused("--against is missing", questions=questions, answers=a)
    refused("nothing.jsonl", questions=questions, answers=a, against=str(tmp_path / "nothing.jsonl"))


async def test_when_the_disk_is_full_the_choices_stay_on_the_page(tmp_path: Path) -> None:
    async with page(tmp_path / "run") as site, person(site, "Ann") as ann:
        item = await ann.following()
        assert site.votes
        database = site.votes._db
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        form = {"helpful": "left", "honest": "tie", "harmless": "right", "note": "ü" * 4000}
        status, text, _ = await ann.post(f"/item/{item}", form)
        assert status == 503
        assert "could not be saved" in text
        assert re.search(r'name="honest" value="tie" required checked', text)
        assert "ü" * 4000 in text
        database.execute("PRAGMA max_page_count = 100000")
        assert await ann.vote(item or 0, *ALL) != f"/item/{item}"
    assert len(votes_in(tmp_path / "run")) == 1


async def test_the_papers_instructions_and_predictions_can_be_voted_on(tmp_path: Path) -> None:
    data = os.environ.get("DISTILL_DATA")
    if not data:
        pytest.skip("DISTILL_DATA is not set")
    folder = Path(data) / "user_oriented_252"
    files = ("--questions", folder / "instructions.jsonl")
    models = ("text-davinci-003", "davinci-self-instruct")
    paths = [folder / "predictions" / f"{model}.jsonl" for model in models]
    flags = (*files, "--answers", paths[0], "--against", paths[1])
    async with served(tmp_path / "run", *flags) as (command, site), person(site, "Ann") as ann:
        assert not command.err
        await ann.vote(await ann.following(), *ALL)
        assert "1 done<" in (await ann.get("/next"))[1]
        assert ", 251 to go" in (await ann.get("/next"))[1]


def test_a_prediction_is_the_answer_and_what_stands_beside_it_is_not(tmp_path: Path) -> None:
    """Self-Instruct's files of predictions hold the reference, too."""
    for name in ("one", "two"):
        row = {"id": None, "instruction": "Say it.\n", "prediction": f"by {name}", "target": "reference"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | {"output": "reference"}) + "\n")
    (contest,) = judge_contests(None, tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    assert isinstance(contest, Contest)
    assert contest.answers == ("by one", "by two")


async def test_what_was_skipped_stays_in_the_count(tmp_path: Path) -> None:
    async with page(tmp_path / "run", count=5) as site, person(site, "Ann") as ann:
        skipped = await ann.following()
        assert skipped
        await ann.post(f"/item/{skipped}/skip", {})
        item = await ann.following()
        text = (await ann.get(f"/item/{item}"))[1]
        assert re.search(r"0 done, 1 skipped<span[^>]*>, 4 to go", text)
        assert '<progress max="5" value="0"' in text


async def test_the_lead_sees_who_has_come_how_far_and_how_far_they_agree(tmp_path: Path) -> None:
    async with page(tmp_path / "run", count=2) as site:
        async with person(site, "Ann") as ann, person(site, "<b>Bob") as bob:
            first = await ann.following()
            assert first
            await ann.vote(first, *ALL)
            assert (await ann.get("/lead"))[0] == 403  # with the key of those who vote
            assert (await ann.get(f"/lead?token={TOKEN}"))[0] == 403
            status, text, path = await bob.get(f"/lead?token={LEAD_TOKEN}")
            assert (status, path) == (200, "/lead")
            assert "Annotators: 2" in text
            assert "No pair has two votes yet." in text
            while (item := await bob.following()) is not None:
                await bob.vote(item, *ALL)
            text = (await bob.get("/lead"))[1]
        assert "&lt;b&gt;Bob" in text
        assert re.search(r">Ann</th><td>1</td><td>0</td>", text)
        assert "Pairs with all their 2 votes: 1 of 2. Votes in all: 3." in text
        assert re.search(r'scope="row">Honest</th><td>1</td><td>1</td><td>100 %', text)  # both said tie
        assert not [name for name in NAMES if name in text]
        async with person(site) as stranger:
            assert (await stranger.get("/lead?token=wrong"))[0] == 403
            await stranger.get(f"/lead?token={LEAD_TOKEN}")
            assert (await stranger.get("/next"))[0] == 403  # the lead's key is not a voter's


async def test_the_address_for_the_lead_is_told_and_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    addresses = []
    for _ in range(2):
        async with served(run, *write_study(tmp_path / "files")) as (command, _):
            await until(lambda out=command.out: b"/lead?token=" in out)
            addresses.append(re.search(rb"/lead\?token=(\S+)", bytes(command.out))[1])  # type: ignore[index]
    assert addresses[0] == addresses[1]
    assert (run / "annotate.lead-token").stat().st_mode & 0o077 == 0


GERMAN = """
language = "de"

[[criterion]]
name = "correct"
title = "Richtig"
question = "Welche Antwort stimmt eher?"
meaning = "Was sie sagt, stimmt."

[[criterion]]
name = "style"
title = "Ton"
question = "Welche klingt besser?"
meaning = "Sie klingt freundlich <und> klar."

[text]
"Instruction" = "Aufgabe"
"Left" = "Links"
"Save and next" = "Sichern und weiter"
"{n} done" = "{n} fertig"
"Progress of the votes" = "Stand der Abstimmung"
"Annotators: {n}" = "Abstimmende: {n}"
"last vote" = "letzte Stimme"
"This page needs its key" = "Diese Seite braucht ihren Schlüssel"
"There is no such page." = "Diese Seite gibt es nicht."
"and" = "und"
"Please choose for {titles} as well. Nothing has been saved yet." = "Bitte auch {titles} wählen."
"""


async def test_a_study_has_criteria_of_its_own_and_pages_in_its_language(tmp_path: Path) -> None:
    words, run = tmp_path / "words.toml", tmp_path / "run"
    words.write_text(GERMAN)
    files = write_study(tmp_path / "files")
    async with served(run, *files, "--words", words) as (_, site), person(site, "Ann") as ann:
        text = (await ann.get("/name"))[1]
        assert "Sie klingt freundlich &lt;und&gt; klar." in text
        assert "Helpful" not in text
        item = await ann.following()
        text = (await ann.get(f"/item/{item}"))[1]
        for shown in (
            '<html lang="de" dir="ltr">',
            "Aufgabe</h2>",
            "Sichern und weiter",
            "0 fertig",
            "Richtig",
        ):
            assert shown in text
        status, text, _ = await ann.post(f"/item/{item}", {"correct": "left"})
        assert (status, "Bitte auch Ton wählen." in text) == (422, True)
        status, _, path = await ann.post(f"/item/{item}", {"correct": "left", "style": "tie"})
        assert status == 200
        assert path != f"/item/{item}"
        assert re.search(r'name="correct" value="left" required checked', (await ann.get(f"/item/{item}"))[1])
        assert "Diese Seite gibt es nicht." in (await ann.get("/nowhere"))[1]
        assert "Diese Seite braucht ihren Schlüssel" in (await ann.get("/lead"))[1]
        status, text, _ = await ann.get(f"/lead?token={(run / LEAD_FILE).read_text().strip()}")
        for shown in ('lang="de"', "Stand der Abstimmung</h1>", "Abstimmende: 1", ">letzte Stimme</th>"):
            assert shown in text
        status, text, _ = await ann.post(f"/item/{await ann.following()}", {})
        assert (status, "Bitte auch Richtig und Ton wählen." in text) == (422, True)
    async with served(run) as (_, site), person(site, "Ann") as ann:  # the words are kept
        item = await ann.following()
        assert "Aufgabe</h2>" in (await ann.get(f"/item/{item}"))[1]
    told = json.loads((await human(run, "--json")).out)
    assert list(told["criteria"]) == ["correct", "style"]
    assert told["criteria"]["style"]["tie"]["votes"] == 1
    assert "correct" in (await human(run)).out
    assert "helpful" not in (await human(run, "--votes", tmp_path / "votes.csv")).out
    assert (
        (tmp_path / "votes.csv")
        .read_text()
        .splitlines()[0]
        .startswith("pair,question,annotator,correct,style,note,")
    )
    words.write_text(GERMAN.replace('"style"', '"tone"'))
    ended = await distill("annotate", "--run", run, "--words", words)
    assert (ended.code, "has votes on correct, style" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("before", "instead", "said"),
    [
        ("language", "lang", "unknown name lang"),
        ('name = "style"', 'name = "correct"', "a name of its own"),
        ('name = "style"', 'name = "Style!"', "must be lower-case letters"),
        ('title = "Ton"', "", "[[criterion]] needs the texts name, title, question, meaning"),
        ('"Left" =', '"Lefft" =', "'Lefft' is on no page"),
        ('"{n} fertig"', '"fertig"', "must be a text with {n}"),
        ('"{n} fertig"', '"{n.x} fertig"', "must be a text with {n}"),
        ("[[criterion]]", "[[criterion", "is not valid TOML"),
        ("[text]", "[[criterion]]\n[[criterion]]\n[text]", "it takes up to 3 tables"),
    ],
)
def test_words_that_cannot_be_shown_are_refused(tmp_path: Path, before: str, instead: str, said: str) -> None:
    path = tmp_path / "words.toml"
    path.write_text(GERMAN.replace(before, instead))
    with pytest.raises(UsageError, match=re.escape(said)):
        read_words(path)


def test_every_text_of_a_page_can_be_said_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text("[text]\n" + "".join(f"{json.dumps(text)} = {json.dumps(text)}\n" for text in TEXTS))
    assert len(read_words(path)["texts"]) == len(TEXTS) > 40
