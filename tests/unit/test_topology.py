"""The addresses of the servers of a cluster, from the reply of one server."""

from __future__ import annotations

from typing import Any

import pytest

from django_sockets.backends.client.connection import ReplyError
from django_sockets.backends.client.routes import moved_to
from django_sockets.backends.cluster.topology import Topology, read_slot_map
from django_sockets.errors import ConnectError
from django_sockets.url import Address, BrokerURL

ASKED = Address("seed", 7000)
IP = {b"ip": b"10.0.0.1"}

SERVERS: dict[str, tuple[list[Any], Address | None]] = {
    "an ip": ([b"10.0.0.1", 7001, b"id", {}], Address("10.0.0.1", 7001)),
    "an ip, before Redis 4": ([b"10.0.0.1", 7001], Address("10.0.0.1", 7001)),
    "an ipv6 address": ([b"fe80::1", 7001, b"id", {}], Address("fe80::1", 7001)),
    "a host name": ([b"n1.example", 7001, b"id", IP], Address("n1.example", 7001)),
    "NULL: the host asked": ([None, 7001, b"id", IP], Address("seed", 7001)),
    "NULL, nothing beside it": ([None, 7001, b"id", {}], Address("seed", 7001)),
    "no address of its own": ([b"", 7001, b"id", {}], Address("seed", 7001)),
    "no address, with an empty ip": ([b"", 7001, b"id", {b"ip": b""}], Address("seed", 7001)),
    "no host name": ([b"?", 7001, b"id", IP], Address("10.0.0.1", 7001)),
    "no host name, RESP2": ([b"?", 7001, b"id", [b"ip", b"10.0.0.1"]], Address("10.0.0.1", 7001)),
    "no ip, but a host name": ([b"?", 7001, b"id", {b"hostname": b"n1"}], Address("n1", 7001)),
    "an empty ip, but a host name": (
        [b"?", 7001, b"id", {b"ip": b"", b"hostname": b"n1"}],
        Address("n1", 7001),
    ),
    "no host name and nothing beside it": ([b"?", 7001, b"id", {}], Address("seed", 7001)),
    "no host name, before Redis 7": ([b"?", 7001, b"id"], Address("seed", 7001)),
    "no port": ([b"10.0.0.1", 0, b"id", {}], None),
    "neither host nor port": ([None, 0, b"id", IP], None),
}


def answer(*slots: list[Any]) -> list[Any]:
    return [list(slots), b"cluster_current_epoch:3\r\n", [[b"ssubscribe"]]]


OTHER = [b"10.0.0.9", 7009, b"other", {}]


@pytest.mark.parametrize("case", SERVERS)
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_where_a_server_is(case: str, role: str) -> None:
    server, address = SERVERS[case]
    servers = [server, OTHER] if role == "primary" else [OTHER, server]
    known = read_slot_map(answer([0, 99, *servers], [100, 16383, OTHER]), ASKED)
    other = Address("10.0.0.9", 7009)
    assert known.owners[100] == other
    if role == "primary":
        assert known.owners[99] == address
        assert (address in known.primaries) == (address is not None)
        assert None not in known.primaries
    else:
        assert known.owners[99] == other
        assert None not in known.replicas


def test_servers_without_a_name_and_with_one_port_are_told_apart_by_their_ip() -> None:
    """They cannot all be at the host asked, which may be a name for all of them."""
    servers = [[None, 6379, b"id%d" % n, {b"ip": b"10.0.0.%d" % n}] for n in range(3)]
    known = read_slot_map(
        answer(*([n * 5000, n * 5000 + 4999, server] for n, server in enumerate(servers))), ASKED
    )
    assert list(known.primaries) == [Address(f"10.0.0.{n}", 6379) for n in range(3)]


NO_MAP = {
    "no port for this kind of connection": (
        answer([0, 16383, [b"10.0.0.1", 0, b"id", {}]]),
        r"no port for connections of this kind: with TLS .* rediss\+cluster://",
    ),
    "no slots": (answer(), "it has no slots assigned"),
    "refused": ([ReplyError("ERR no"), b"", []], "ERR no"),
    "nonsense": (answer([0]), r"seed:7000 gives no slot map"),
    "something else": ([7, b"", []], r"seed:7000 gives no slot map"),
    "half an answer": ([[]], r"seed:7000 gives no slot map"),
}


@pytest.mark.parametrize("case", NO_MAP)
async def test_an_answer_that_is_not_a_slot_map(case: str) -> None:
    replies, words = NO_MAP[case]

    async def ask(address: Address) -> tuple[Any, Address]:
        return replies, address

    topology = Topology(
        BrokerURL.parse("redis+cluster://seed"), [ASKED], ask, seems_reachable=lambda _: True
    )
    with pytest.raises(ConnectError, match=words):
        await topology.refresh()


async def test_an_odd_answer_does_not_hide_the_others() -> None:
    async def ask(address: Address) -> tuple[Any, Address]:
        return (7 if address == ASKED else answer([0, 16383, OTHER])), address

    url = BrokerURL.parse("redis+cluster://seed,good")
    topology = Topology(url, [ASKED, Address("good", 1)], ask, seems_reachable=lambda _: True)
    assert (await topology.refresh()).covered == 16384


async def test_all_servers_that_could_not_be_reached_are_named() -> None:
    async def ask(address: Address) -> tuple[Any, Address]:
        raise ConnectError(url, f"cannot connect: {address}: refused")

    url = BrokerURL.parse("redis+cluster://a:1,b:2")
    topology = Topology(url, list(url.addresses), ask, seems_reachable=lambda _: True)
    with pytest.raises(ConnectError, match="cannot connect") as caught:
        await topology.refresh()
    assert "a:1: refused" in str(caught.value)
    assert "b:2: refused" in str(caught.value)


SENDER = Address("10.0.0.1", 7001)
REDIRECTIONS = {
    "MOVED 3999 10.0.0.2:7002": (3999, Address("10.0.0.2", 7002)),
    "MOVED 3999 n2.example:7002": (3999, Address("n2.example", 7002)),
    "MOVED 3999 fe80::2:7002": (3999, Address("fe80::2", 7002)),
    "MOVED 3999 [fe80::2]:7002": (3999, Address("fe80::2", 7002)),
    "MOVED 3999 :7002": (3999, Address("10.0.0.1", 7002)),
    "MOVED 3999 ?:7002": None,
    "MOVED 3999 10.0.0.2:0": None,
    "MOVED 3999 :0": None,
    "MOVED 3999": None,
    "MOVED x y:z": None,
    "MOVED 3999 10.0.0.2": None,
    "ASK 3999 10.0.0.2:7002": None,
    "TRYAGAIN": None,
}


@pytest.mark.parametrize("text", REDIRECTIONS)
def test_where_a_redirection_leads(text: str) -> None:
    assert moved_to(ReplyError(text), SENDER) == REDIRECTIONS[text]
    if ":7002" in text and " :" not in text:
        assert moved_to(ReplyError(text)) == REDIRECTIONS[text]
    if " :" in text:
        assert moved_to(ReplyError(text)) is None
