"""A real sentinel set for tests: faults are injected, and `restore` undoes them.

    with SentinelTrio(ValkeyServer) as trio:
        primary = trio.primary()
        primary.kill()
        trio.wait_promoted(primary)
        ...
        trio.restore()

Use it in tests of this library and of applications. Nodes and sentinels are `CacheServer`s; the
faults are their methods `kill`, `start`, `pause` and `resume`. All calls block: use
`asyncio.to_thread` on an event loop.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from typing import Any
from urllib.parse import quote, urlencode

import redis

from .census import answering, count_channels, count_connections, each, until
from .processes import Startable
from .sentinel_server import SentinelServer
from .servers import CacheServer, ValkeyServer

__all__ = ["SentinelServer", "SentinelTrio"]

WAIT_SECONDS = 60.0
_QUORUM = 2
_FAILOVER_TIMEOUT_MS = 1500

# Added to `down_after_ms` of each sentinel. Three sentinels that notice a dead primary at the same
# time vote for themselves, and try again only after twice the failover timeout. So they notice it
# one after the other, and the last one still has a vote.
_LATER_MS = (0, 50, 400)
_ATTEMPT_SECONDS = 4.0


class SentinelTrio(Startable):
    """One primary, two replicas, and three sentinels of which two must agree; no TLS.

    Args:
        server_class: the class of the nodes, and the program of the sentinels.
        service: the name of the primary for the sentinels.
        username, password: those of the nodes, as in `CacheServer`. The password has no spaces,
            quotes or backslashes, which sentinels do not store correctly.
        sentinel_username, sentinel_password: those of the sentinels.
        down_after_ms: a primary that is silent for this long is replaced.

    Attributes:
        nodes: the nodes; the objects and their order never change. The first node is the first
            primary.
        sentinels: the sentinels.

    Raises:
        ServerUnavailable: see `CacheServer`.
    """

    def __init__(
        self,
        server_class: type[CacheServer] = ValkeyServer,
        *,
        service: str = "main",
        username: str | None = None,
        password: str | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        down_after_ms: int = 500,
    ) -> None:
        if password and set(password) & set(" '\"\\"):
            raise ValueError("sentinels cannot keep a password with spaces, quotes or backslashes")
        self._class = server_class
        self._service = service
        self._user: dict[str, Any] = {"username": username, "password": password}
        self._sentinel_user: dict[str, Any] = {
            "username": sentinel_username,
            "password": sentinel_password,
        }
        self._down_after_ms = down_after_ms
        config = {"repl-diskless-sync-delay": "0", "shutdown-timeout": "0"}
        if password:
            config |= {"masterauth": shlex.quote(password)}
        if username:
            config |= {"masteruser": shlex.quote(username)}
        self.nodes = [server_class(config=config, **self._user) for _ in range(3)]
        self.sentinels = [
            SentinelServer(server_class.find_binary(), **self._sentinel_user) for _ in range(3)
        ]

    # Life

    def start(self) -> None:
        """Start all servers, and return when the sentinels know the nodes and each other.

        Raises:
            RuntimeError: see `CacheServer.start`.
            TimeoutError: the sentinels did not find the nodes or each other.
        """
        each(lambda server: server.start(), [*self.nodes, *self.sentinels])
        primary = self.nodes[0]
        for node in self.nodes[1:]:
            node.execute("REPLICAOF", primary.host, primary.port)
        settings: dict[str, str | int] = {
            "failover-timeout": _FAILOVER_TIMEOUT_MS,
            "parallel-syncs": 2,
        }
        for kind in ("username", "password"):
            if value := self._user[kind]:
                settings["auth-user" if kind == "username" else "auth-pass"] = value
        among = {f"sentinel-{kind[:4]}": value for kind, value in self._sentinel_user.items()}
        watched = (self._service, primary.host, primary.port, _QUORUM)
        for sentinel, later_ms in zip(self.sentinels, _LATER_MS, strict=True):
            for name, value in among.items():
                if value:
                    sentinel.execute("SENTINEL", "CONFIG", "SET", name, value)
            sentinel.execute("SENTINEL", "MONITOR", *watched)
            settings["down-after-milliseconds"] = self._down_after_ms + later_ms
            words = [word for pair in settings.items() for word in pair]
            sentinel.execute("SENTINEL", "SET", self._service, *words)
        self.restore()

    def stop(self) -> None:
        """Stop all servers. A repeated call has no effect."""
        self.kill_all()
        each(CacheServer.stop, [*self.nodes, *self.sentinels])

    def kill_all(self) -> None:
        """Send SIGKILL to every node and sentinel."""
        each(CacheServer.kill, [*self.sentinels, *self.nodes])

    # Facts

    @property
    def url(self) -> str:
        """The broker URL, naming the three sentinels."""
        user = self.nodes[0].url.partition("://")[2].rpartition("@")[0]
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        named = {f"sentinel_{kind}": value for kind, value in self._sentinel_user.items() if value}
        query = f"?{urlencode(named, quote_via=quote)}" if named else ""
        where = f"{user}@{hosts}" if user else hosts
        return f"redis+sentinel://{where}/{quote(self._service)}/0{query}"

    def primary(self) -> CacheServer:
        """The node that all answering sentinels name as the primary. It may be down.

        Raises:
            LookupError: the sentinels name none, or several.
        """
        ports = {int(self._ask(one, "GET-MASTER-ADDR-BY-NAME")[1]) for one in self._awake()}
        if len(ports) != 1:
            raise LookupError(f"the sentinels name {len(ports)} primaries")
        return next(node for node in self.nodes if node.port in ports)

    def replicas(self) -> list[CacheServer]:
        """The nodes that answer and report that they are replicas."""
        return [node for node in answering(self.nodes) if node.execute("ROLE")[0] == "slave"]

    def connections(self) -> int:
        """The number of clients of nodes and sentinels, without their own connections."""
        return count_connections([*self.nodes, *self.sentinels])

    def channels(self) -> int:
        """The number of users' channels that have a subscription on any node."""
        return count_channels(self.nodes)

    # Acts

    def wait_promoted(
        self, not_this: CacheServer, timeout_seconds: float = WAIT_SECONDS
    ) -> CacheServer:
        """Wait until the sentinels name another primary, and that node reports that it is one.

        Raises:
            TimeoutError: this did not happen within `timeout_seconds`.
        """

        def promoted() -> CacheServer | None:
            with contextlib.suppress(LookupError, redis.ConnectionError, redis.TimeoutError):
                node = self.primary()
                if node is not not_this and answering([node]) and _role(node)[0] == "master":
                    return node
            return None

        return until(promoted, timeout_seconds, "no replica was promoted")

    def failover(self, timeout_seconds: float = WAIT_SECONDS) -> CacheServer:
        """Let a sentinel promote a replica while the primary works; return the new primary.

        Raises:
            TimeoutError: this did not happen within `timeout_seconds`.
        """
        old = self.primary()

        def begun() -> bool:
            # The sentinel refuses until a replica has reported, or while another failover runs.
            with contextlib.suppress(redis.ResponseError):
                return bool(self._ask(self._awake()[0], "FAILOVER"))
            return False

        give_up = time.monotonic() + timeout_seconds
        while True:
            until(begun, timeout_seconds, "the sentinels do not begin a failover")
            try:
                return self.wait_promoted(old, _ATTEMPT_SECONDS)
            except TimeoutError:  # The sentinel aborts a failover after its own timeout.
                if time.monotonic() > give_up:
                    raise

    def impostor_at(self, node: CacheServer, **options: Any) -> CacheServer:
        """A server outside this set, at the address of a killed node.

        Start it while the node is down, and stop it before `restore`. The sentinels turn it into a
        replica after a second, unless its credentials (`options`) differ from the node's.
        """
        return self._class(port=node.port, **{**self._user, **options})

    def restore(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Undo every fault: all servers run, the sentinels agree on a primary, the others follow.

        Raises:
            TimeoutError: this did not succeed within `timeout_seconds`.
        """
        for server in (*self.nodes, *self.sentinels):
            if server.paused:
                server.resume()
        down = [server for server in (*self.nodes, *self.sentinels) if not server.running]
        each(lambda server: server.start(), down)
        until(self._repaired, timeout_seconds, "the sentinel set cannot be restored")

    # Internal

    def _awake(self) -> list[CacheServer]:
        return answering(self.sentinels)

    def _ask(self, sentinel: CacheServer, question: str) -> Any:
        return sentinel.execute("SENTINEL", question, self._service)

    def _repaired(self) -> bool:
        """Do all repairs that are possible now; return whether no repair was needed."""
        try:
            primary = self.primary()
        except LookupError:
            return False  # The sentinels will agree by themselves.
        whole = True
        if _role(primary)[0] != "master":
            primary.execute("REPLICAOF", "NO", "ONE")
            whole = False
        for node in self.nodes:
            if node is primary:
                continue
            kind, *facts = _role(node)
            if kind == "master" or (facts[0], facts[1]) != (primary.host, primary.port):
                node.execute("REPLICAOF", primary.host, primary.port)
                whole = False
            elif facts[2] != "connected":
                whole = False
        return whole and all(map(self._is_content, self.sentinels))

    def _is_content(self, sentinel: CacheServer) -> bool:
        about = _pairs(self._ask(sentinel, "MASTER"))
        replicas = list(map(_pairs, self._ask(sentinel, "REPLICAS")))
        others = list(map(_pairs, self._ask(sentinel, "SENTINELS")))
        opinions = [set(other["flags"].split(",")) for other in others]
        return (
            about["flags"] == "master"
            and [replica["flags"] for replica in replicas] == ["slave"] * 2
            and all(replica["master-link-status"] == "ok" for replica in replicas)
            and len(others) == 2
            # The opinion of another sentinel on an old primary ("master_down") is kept for a while.
            and all({"sentinel"} <= words <= {"sentinel", "master_down"} for words in opinions)
        )


def _role(node: CacheServer) -> list[Any]:
    reply: list[Any] = node.execute("ROLE")
    return reply


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
