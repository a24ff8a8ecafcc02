"""examples/board works as its README describes: login, orders, requests, history, tests."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from django_sockets.testing.ports import free_port
from support.example_process import commands, run, started
from support.example_site import Site, Visitor
from support.protocol_client import ProtocolClient

SETUP, RUNSERVER = commands("board")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database = str(tmp_path_factory.mktemp("board") / "board.sqlite3")
    site = Site(free_port())
    found = re.search(
        r"alice, bob, carol .*password (\S+)", run("board", SETUP, BOARD_DATABASE=database)
    )
    assert found is not None
    site.password = found[1]
    with started(
        "board", RUNSERVER, "--noreload", str(site.port), BOARD_DATABASE=database
    ) as running:
        running.read_until("Quit the server")
        yield site
        assert running.end() == 0
    assert "Traceback" not in running.printed, running.printed


def subscribe(page: ProtocolClient, html: str) -> Any:
    """Subscribe as the page with this HTML does."""
    data = dict(re.findall(r'data-(channel|token)="([^"]*)"', html))
    return page.subscribe(**data)


def place(page: ProtocolClient, item: str) -> Any:
    return page.request("place", reference=str(uuid.uuid4()), item=item)


def test_an_order_is_live_for_its_customer_and_the_staff_only(site: Site) -> None:
    alice, bob, carol = (site.log_in(name) for name in ("alice", "bob", "carol"))
    with alice.page() as staff, bob.page() as customer, carol.page() as other:
        for visitor, page in ((alice, staff), (bob, customer), (carol, other)):
            answer = subscribe(page, visitor.get("/"))
            assert answer["recovered"]
            assert 0 < answer["expires_in"] <= 600
        order = place(customer, "Rye bread")
        assert staff.data() == customer.data() == order
        baking = staff.request("advance", id=order["id"], version=1)
        assert baking["status"] == "baking"
        assert staff.data() == customer.data() == baking
        assert customer.request("cancel", id=order["id"], version=2)["code"] == "too_late"
        own = place(other, "Pretzel")
        assert other.data() == own  # And nothing of bob's before it.
        assert staff.data() == own


def test_a_page_gets_what_has_changed_between_its_query_and_its_subscription(site: Site) -> None:
    bob = site.log_in("bob")
    html = bob.get("/")
    with bob.page() as page:
        order = place(page, "Apple pie")
    with bob.page() as page:
        answer = subscribe(page, html)
        assert (answer["recovered"], answer["count"]) == (True, 1)
        assert page.data() == order
    assert order in json.loads(bob.get("/state/"))["orders"]


def test_another_user_has_no_use_for_the_token(site: Site) -> None:
    bob, carol = site.log_in("bob"), site.log_in("carol")
    with carol.page() as page:
        assert subscribe(page, bob.get("/"))["error"]["code"] == "token_foreign"
        assert page.subscribe(channel="orders:staff")["error"]["code"] == "forbidden"
        order = place(page, "Pretzel")
        for kind in ("advance", "cancel"):
            with bob.page() as other:
                error = other.request(kind, id=order["id"], version=1)
            assert error["code"] in ("forbidden", "not_found")


def test_a_logout_closes_and_a_page_without_a_login_is_refused_so_that_it_can_see_it(
    site: Site,
) -> None:
    bob = site.log_in("bob")
    with bob.page() as page:
        bob.post("/logout/", bob.get("/"))
        assert page.wait_for(lambda frame: "bye" in frame)["bye"]["code"] == 4401
    stranger = Visitor(site, bob.opener, bob.cookies)
    with stranger.page() as page:
        assert page.wait_for(lambda frame: True)["bye"] == {"code": 4401, "again": False}
        with pytest.raises(ConnectionClosed):
            page.wait_for(lambda frame: True)


def test_its_own_tests_pass() -> None:
    run("board", "python manage.py test")


def test_its_migration_is_that_of_its_models() -> None:
    assert "No changes" in run("board", "python manage.py makemigrations --check --dry-run")
