"""Network partitions in the kernel: two networks and a router that can stop forwarding.

    with Partition() as network:
        server = PlacedValkey()
        place([server], network.left)
        with server, network.right.entered():
            ...
            network.split()  # the left no longer reaches the right; the router reaches both
            network.heal()

The networks are Linux network namespaces. They need root (CAP_SYS_ADMIN) and the program `ip`. The
network of the machine does not change. A namespace ends with the last process or object that uses
it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from django_sockets.testing.sentinels import SentinelServer
from django_sockets.testing.servers import CacheServer, ValkeyServer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Namespace",
    "NamespacesUnavailable",
    "Partition",
    "Placed",
    "PlacedSentinel",
    "PlacedValkey",
    "place",
]

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <linux/sched.h>
_OWN = "/proc/thread-self/ns/net"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")

T = TypeVar("T")


class NamespacesUnavailable(Exception):
    """This machine or user cannot create network namespaces. The message gives the reason."""


class Namespace:
    """A separate network for the threads that enter it.

    A socket, a process and a thread belong to the namespace of the thread that makes them. Sockets
    stay in it when that thread leaves.

    Args:
        address: the address of its only interface except loopback.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._file = _in_a_thread(_new_namespace)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread and the threads that it starts into the namespace."""
        before = os.open(_OWN, os.O_RDONLY)
        try:
            _call("setns", self._file, _NEW_NETWORK)
            try:
                yield
            finally:
                _call("setns", before, _NEW_NETWORK)
        finally:
            os.close(before)

    def run(self, call: Callable[..., T], *arguments: object) -> T:
        """Run the call in the namespace, and return its result or raise its error."""
        with self.entered():
            return call(*arguments)

    def ip(self, *words: str) -> None:
        """Run the program `ip` in the namespace."""
        self.run(_run, "ip", *words)

    @property
    def path(self) -> str:
        """A path by which `ip` can name the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def close(self) -> None:
        """Release the namespace."""
        os.close(self._file)


class Partition:
    """Two namespaces, `left` and `right`, that reach each other through a third one, `router`.

    Raises:
        NamespacesUnavailable: this machine or user cannot create namespaces.
    """

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise NamespacesUnavailable("no ip: run apt-get install iproute2")
        self.router = Namespace("10.77.1.1")
        self.left, self.right = Namespace("10.77.1.2"), Namespace("10.77.2.2")
        self._all = (self.router, self.left, self.right)

    def __enter__(self) -> Self:
        try:
            self._connect()
        except BaseException as exc:
            self.__exit__()
            if isinstance(exc, OSError):
                raise NamespacesUnavailable(f"no network between namespaces: {exc}") from exc
            raise
        return self

    def _connect(self) -> None:
        for namespace in self._all:
            namespace.ip("link", "set", "lo", "up")
        for number, side in enumerate((self.left, self.right), 1):
            end, gate = f"side{number}", f"10.77.{number}.1"
            router = self.router
            router.ip(*f"link add {end} type veth peer name uplink netns".split(), side.path)
            for namespace, name, address in ((router, end, gate), (side, "uplink", side.address)):
                namespace.ip("address", "add", f"{address}/24", "dev", name)
                namespace.ip("link", "set", name, "up")
            side.ip("route", "add", "default", "via", gate)
        self.heal()

    def __exit__(self, *_: object) -> None:
        for namespace in self._all:
            namespace.close()

    def split(self) -> None:
        """Drop every packet between the sides. Neither side gets an error."""
        self.router.run(_FORWARDING.write_text, "0")

    def heal(self) -> None:
        """Carry packets again."""
        self.router.run(_FORWARDING.write_text, "1")


class Placed(CacheServer):
    """A server that runs in a namespace."""

    namespace: Namespace

    def start(self) -> None:
        """See `CacheServer.start`."""
        with self.namespace.entered():
            super().start()


class PlacedValkey(Placed, ValkeyServer):
    """A `ValkeyServer` that runs in a namespace."""


class PlacedSentinel(Placed, SentinelServer):
    """A `SentinelServer` that runs in a namespace."""


def place(servers: Iterable[CacheServer], *namespaces: Namespace) -> None:
    """Choose the namespaces of `Placed` servers, before their first start."""
    for server, namespace in zip(servers, namespaces, strict=True):
        if not isinstance(server, Placed):
            raise TypeError(f"{type(server).__name__} is not a Placed server")
        server.namespace, server.host = namespace, namespace.address


def _in_a_thread(call: Callable[[], T]) -> T:
    """Run the call on a new thread, and return its result or raise its error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _new_namespace() -> int:
    _call("unshare", _NEW_NETWORK)
    return os.open(_OWN, os.O_RDONLY)


def _call(function: str, *arguments: int) -> None:
    # Python has os.setns and os.unshare since 3.12.
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        error = ctypes.get_errno()
        raise NamespacesUnavailable(f"{function} for a network namespace: {os.strerror(error)}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespacesUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
