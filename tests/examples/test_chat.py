"""examples/chat works as its README describes: tables, users, runserver and messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from django_sockets.testing.ports import free_port
from support.example_process import WAIT_SECONDS, commands, run, started
from support.example_site import Site

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


def say(socket: ClientConnection, type_: str, **more: Any) -> None:
    socket.send(json.dumps({"type": type_, **more}))


def hear(socket: ClientConnection, kind: str) -> Any:
    """The next event, without those of the roll call unless it is asked for."""
    while True:
        event = json.loads(socket.recv(timeout=WAIT_SECONDS))
        if event.get("kind") == kind or event.get("kind") not in ("entered", "here"):
            assert event.get("kind") == kind, event
            return event


def close_code(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=WAIT_SECONDS)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_a_room_hears_what_is_said_and_a_writer_not_himself(site: Site) -> None:
    with site.log_in("alice").socket() as alice, site.log_in("bob").socket() as bob:
        say(alice, "enter", room="lobby")
        hear(alice, "welcome")
        say(bob, "enter", room="lobby")
        hear(bob, "welcome")
        assert hear(alice, "entered")["name"] == "bob"
        assert hear(bob, "here")["name"] == "alice"
        say(bob, "writing")
        say(bob, "say", text="hello")
        assert hear(alice, "writing")["name"] == "bob"
        for socket in (alice, bob):
            event = hear(socket, "said")
            assert (event["name"], event["text"]) == ("bob", "hello")
        say(bob, "say", text=7)
        assert "Expected `str`" in json.loads(bob.recv(timeout=WAIT_SECONDS))["error"]["message"]
        bob.close()
        assert hear(alice, "left")["name"] == "bob"


def test_carol_may_not_enter_the_room_of_the_staff(site: Site) -> None:
    with site.log_in("carol").socket() as carol, site.log_in("alice").socket() as alice:
        say(alice, "enter", room="staff")
        hear(alice, "welcome")
        for room in ("staff", "nowhere"):
            say(carol, "enter", room=room)
            assert hear(carol, "refused")["room"] == room
        say(carol, "say", text="let me in")
        say(alice, "say", text="between us")
        assert hear(alice, "said")["text"] == "between us"
        say(carol, "enter", room="garden")
        hear(carol, "welcome")


def test_a_logout_closes_with_4401_and_so_does_coming_without_a_login(site: Site) -> None:
    alice = site.log_in("alice")
    with alice.socket() as socket:
        say(socket, "enter", room="lobby")
        hear(socket, "welcome")
        alice.post("/logout/", alice.get("/"))
        assert close_code(socket) == 4401
    with alice.socket() as socket:
        assert close_code(socket) == 4401


def test_its_script_makes_no_markup_of_what_others_wrote() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples"
    scripts = [*folder.glob("*/*/static/**/*.js"), *folder.glob("*/*.html")]
    assert len(scripts) >= 4
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), (
            script
        )
