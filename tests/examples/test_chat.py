"""examples/chat works as its README describes: tables, users, runserver and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from django_sockets.testing.ports import free_port
from support.example_process import commands, run, started
from support.example_site import Site
from support.protocol_client import ProtocolClient

SETUP, RUNSERVER = commands("chat")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database = str(tmp_path_factory.mktemp("chat") / "chat.sqlite3")
    site = Site(free_port())
    found = re.search(
        r"alice, bob, carol .*password (\S+)", run("chat", SETUP, CHAT_DATABASE=database)
    )
    assert found is not None
    site.password = found[1]
    run("chat", SETUP, CHAT_DATABASE=database)  # A second time has no effect.
    with started(
        "chat", RUNSERVER, "--noreload", str(site.port), CHAT_DATABASE=database
    ) as running:
        running.read_until("Quit the server")
        yield site
        assert running.end() == 0
    assert "Traceback" not in running.printed, running.printed


def enters(page: ProtocolClient, room: str) -> Any:
    """Enter as the page does. Returns the error, or None."""
    answers = [
        page.subscribe(channel=f"room:{room}", presence=True),
        page.subscribe(channel=f"writing:{room}"),
    ]
    entered = page.request("enter", room=room) or {}
    assert [answer.get("error", {}).get("code") for answer in answers] == [entered.get("code")] * 2
    return entered.get("code")


def hear(page: ProtocolClient, kind: str) -> Any:
    """The data of the next broadcast on a channel of this kind."""
    return page.wait_for(lambda frame: frame.get("channel", "").startswith(f"{kind}:"))["data"]


def sees(page: ProtocolClient, change: str, name: str) -> Any:
    """Wait until a user has joined or left."""
    return page.wait_for(
        lambda frame: [{"name": name}] in frame.get("presence", {}).get(change, {}).values()
    )


def test_a_room_hears_what_is_said_and_a_writer_not_himself(site: Site) -> None:
    with site.log_in("alice").page() as alice, site.log_in("bob").page() as bob:
        assert enters(alice, "lobby") is None
        assert enters(bob, "lobby") is None
        sees(alice, "joined", "bob")
        sees(bob, "joined", "bob")
        bob.connection.send('{"message": {"type": "writing"}}')
        assert bob.request("say", text="hello") is None
        assert hear(alice, "writing") == {"name": "bob"}
        for page in (alice, bob):
            assert hear(page, "room") == {"name": "bob", "text": "hello"}
        assert "Expected `str`" in bob.request("say", text=7)["message"]
        assert [frame for frame in bob.frames if frame.get("channel") == "writing:lobby"] == []
        with site.log_in("carol").page() as carol:
            assert enters(carol, "lobby") is None
            sees(alice, "joined", "carol")
            assert enters(carol, "garden") is None
            sees(alice, "left", "carol")


def test_the_list_names_who_is_there_and_two_tabs_are_one_member(site: Site) -> None:
    bob = site.log_in("bob")
    with site.log_in("alice").page() as alice, bob.page() as one, bob.page() as two:
        for page in (one, two):
            assert enters(page, "staff") is None
        members = alice.subscribe(channel="room:staff", presence=True)["presence"]
        assert list(members.values()) == [[{"name": "bob"}] * 2]
        one.connection.close()
        alice.wait_for(lambda frame: "updated" in frame.get("presence", {}))
        two.request("enter", room="lobby")
        sees(alice, "left", "bob")
        assert [frame for frame in alice.frames if frame.get("presence", {}).get("left")] == []


def test_a_tab_that_was_away_gets_what_was_said(site: Site) -> None:
    bob, alice = site.log_in("bob"), site.log_in("alice")
    with bob.page() as page:
        since = page.subscribe(channel="room:garden")["position"]
    with alice.page() as page:
        enters(page, "garden")
        page.request("say", text="Are you there?")
    with bob.page() as page:
        assert page.subscribe(channel="room:garden", since=since)["recovered"]
        assert hear(page, "room")["text"] == "Are you there?"


def test_carol_may_not_enter_the_room_of_the_staff(site: Site) -> None:
    with site.log_in("carol").page() as carol, site.log_in("alice").page() as alice:
        assert enters(alice, "staff") is None
        for room in ("staff", "nowhere"):
            assert enters(carol, room) == "forbidden"
        assert carol.request("say", text="let me in")["code"] == "no_room"
        alice.request("say", text="between us")
        assert hear(alice, "room")["text"] == "between us"
        assert enters(carol, "garden") is None
        assert [frame for frame in carol.frames if "between us" in str(frame)] == []


def test_a_logout_closes_with_4401_and_so_does_coming_without_a_login(site: Site) -> None:
    alice = site.log_in("alice")
    with alice.page() as page:
        assert enters(page, "lobby") is None
        alice.post("/logout/", alice.get("/"))
        assert page.wait_for(lambda frame: "bye" in frame)["bye"]["code"] == 4401
    with alice.page() as page:
        assert page.wait_for(lambda frame: True)["bye"] == {"code": 4401, "again": False}
    # A client without the protocol sees the status.
    with pytest.raises(InvalidStatus, match="403"):
        alice.socket()


def test_its_script_makes_no_markup_of_what_others_wrote() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples"
    scripts = [*folder.glob("*/*/static/**/*.js"), *folder.glob("*/*.html")]
    assert len(scripts) >= 4
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), (
            script
        )
