"""CacheServer: one process of a server that speaks the Redis protocol, for `servers`."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from .commands import connect
from .directives import CA_FILE, SOCKET_FILE, arguments
from .directives import certificates as make_certificates
from .ports import HOST, free_port
from .processes import GuardedProcess, OwnDirectory, Startable

__all__ = ["CacheServer", "ServerUnavailable"]

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 5.0
_POLL_SECONDS = 0.005
_START_ATTEMPTS = 5

# The errors about tls-port of Redis up to 7.0, and of later versions and Valkey.
_BUILT_WITHOUT_TLS = (">>> 'tls-port", "Failed finding TLS support")


class ServerUnavailable(Exception):
    """This machine cannot run the server; the message names what to install."""


class CacheServer(Startable):
    """A server that speaks the Redis protocol; use it with `with`, or `start` and `stop` it.

    Its URL stays the same from its first start until `stop`.

    Args:
        binary: the server program, a path or a name on PATH. Default: None, use `find_binary`.
        port: the port. Default: 0, a free one.
        tls: accept TLS only, with a certificate for localhost and 127.0.0.1 from an authority of
            its own (`tls_ca_file`). This needs the package trustme and a program built with TLS.
        unix: listen on a unix socket as well as on the port; `url` then names the socket.
        username: an ACL user with all permissions; the default user is then disabled.
        password: the password of that user, or of the default user if there is no `username`.
        config: further directives, such as {"maxclients": "5"}, with values as in the server's
            configuration file: words with spaces between them, quotes around a word with spaces.
        without: commands that the server does not have, like an older server.
        certificates: for TLS, the result of `directives.certificates`: clients trust all servers
            that share it through one authority.

    Attributes:
        host: the address on which the server listens, 127.0.0.1. Set another one, such as in
            another network namespace, before the first start.

    Raises:
        ServerUnavailable: the program, or a package that TLS needs, is not installed.
    """

    def __init__(
        self,
        binary: str | Path | None = None,
        *,
        port: int = 0,
        tls: bool = False,
        unix: bool = False,
        username: str | None = None,
        password: str | None = None,
        config: Mapping[str, str] | None = None,
        without: Iterable[str] = (),
        certificates: Mapping[str, bytes] | None = None,
    ) -> None:
        if username and not password:
            raise ValueError("a username needs a password")
        if tls and unix:
            raise ValueError("tls and unix exclude each other")
        name = binary or self.find_binary()
        found = shutil.which(name)
        if found is None:
            raise ServerUnavailable(f"there is no program {str(name)!r}: install it")
        self.binary = Path(found)
        self.host = HOST
        self.port = port
        self.username = username
        self.password = password
        try:
            self._tls = (certificates or make_certificates()) if tls else None
        except ImportError:
            raise ServerUnavailable("no certificates for TLS: run pip install trustme") from None
        self._unix = unix
        self._config = dict(config or {})
        self._without = tuple(without)
        self._process: GuardedProcess | None = None
        self._directory: OwnDirectory | None = None

    @classmethod
    def find_binary(cls) -> str | Path:
        """The program to run if the argument `binary` is None.

        Raises:
            ServerUnavailable: no program is installed.
        """
        for name in ("valkey-server", "redis-server"):
            if shutil.which(name):
                return name
        raise ServerUnavailable("neither valkey-server nor redis-server is on PATH: install one")

    # Life

    def start(self) -> None:
        """Start the server, and return when it answers. After `kill` it has the same port.

        Raises:
            ServerUnavailable: the program was built without TLS, and `tls` is set.
            RuntimeError: the server runs already; or it ended or did not answer within 30 seconds,
                and the message has the end of its log.
        """
        if self._process is not None and self._process.running:
            raise RuntimeError("the server runs already")
        self.kill()
        if self._directory is None:
            self._directory = OwnDirectory()
            for name, contents in self._files().items():
                (self.directory / name).write_bytes(contents)
        fixed_port = self.port
        attempts = 1 if fixed_port else _START_ATTEMPTS
        while True:
            attempts -= 1
            self.port = fixed_port or free_port()
            log = self._try_to_start()
            if self._process is not None:
                return
            self.port = fixed_port
            if self._tls and any(words in log for words in _BUILT_WITHOUT_TLS):
                raise ServerUnavailable(
                    f"{self.binary} was built without TLS: use one with it, such as Debian's redis"
                )
            if not attempts or "Address already in use" not in log:
                raise RuntimeError(f"{self.binary} did not start. The end of its log:\n{log}")

    def stop(self) -> None:
        """Stop the server and remove its directory. A repeated call has no effect.

        It sends SIGTERM, and SIGKILL after 5 seconds, also to a paused server.
        """
        self._terminate()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def restart(self) -> None:
        """Stop the server with SIGTERM, and start it on the same port."""
        self._terminate()
        self.start()

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a crash. `start` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """Pause the server (SIGSTOP): connections stay open without answers until `resume`."""
        self._running().pause()

    def resume(self) -> None:
        """Resume a paused server (SIGCONT): it then answers the commands that have come in."""
        self._running().resume()

    # Facts

    @property
    def running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.running

    @property
    def paused(self) -> bool:
        """Whether the server is paused."""
        return self._process is not None and self._process.paused

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._running().pid

    @property
    def directory(self) -> Path:
        """The directory of its log, its socket and its certificates, until `stop`."""
        if self._directory is None:
            raise RuntimeError("the server is not started")
        return self._directory.path

    @property
    def tls_ca_file(self) -> Path:
        """Path of the certificate of the authority that clients of a TLS server have to trust."""
        return self.directory / CA_FILE

    @property
    def url(self) -> str:
        """The broker URL of this server, with its credentials."""
        if self._unix:
            return f"redis+unix://{self._credentials()}{quote(str(self.directory / SOCKET_FILE))}"
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The broker URL with another port of the host, such as that of a FaultProxy."""
        where = f"{self._credentials()}{self.host}:{port}"
        if self._tls:
            return f"rediss://{where}?tls_ca_file={quote(str(self.tls_ca_file))}"
        return f"redis://{where}"

    def execute(self, *command: str | bytes | float) -> Any:
        """Run one command on a new connection, named `django_sockets.testing`.

        Returns:
            The unchanged reply, with text decoded; bytes that are not UTF-8 become surrogates.

        Raises:
            redis.RedisError: an error reply; no connection, or no reply within 5 seconds.
        """
        with self._connect() as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def execute_many(self, commands: Iterable[Sequence[str | bytes | float]]) -> list[Any]:
        """Run commands in one round trip. All of them run, even if one fails.

        Returns:
            The replies in order; see `execute`.

        Raises:
            redis.RedisError: the first error reply; or see `execute`.
        """
        with self._connect() as client, client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipeline.execute()

    # Internal

    def _connect(self) -> contextlib.AbstractContextManager[redis.Redis]:
        ca_file = self.tls_ca_file if self._tls else None
        return connect(self.host, self.port, self.username, self.password, ca_file)

    def _files(self) -> dict[str, bytes]:
        """Name -> contents of the files that the directory needs before the first start."""
        return dict(self._tls or {})

    def _arguments(self) -> list[str]:
        return arguments(
            host=self.host,
            port=self.port,
            tls=bool(self._tls),
            unix=self._unix,
            username=self.username,
            password=self.password,
            config=self._config,
            without=self._without,
        )

    def _running(self) -> GuardedProcess:
        if self._process is None or not self._process.running:
            raise RuntimeError("the server is not running")
        return self._process

    def _terminate(self) -> None:
        if self._process is not None:
            self._process.terminate(STOP_TIMEOUT_SECONDS)
            self._process = None

    def _try_to_start(self) -> str:
        """Start the process, and set `_process` if it answers; return the end of its log."""
        process = GuardedProcess([str(self.binary), *self._arguments()], self.directory)
        try:
            if self._answers(process):
                self._process = process
        finally:
            if self._process is None:
                process.kill()
        return process.log_tail()

    def _answers(self, process: GuardedProcess) -> bool:
        give_up = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < give_up:
            try:
                info = self.execute("INFO", "server")
            except redis.RedisError:
                pass  # It is starting. Or another server has the port, and this one ends soon.
            else:
                # Another server on the port may answer, too.
                if re.search(rf"^process_id:{process.pid}\s", info, re.MULTILINE):
                    return True
            if process.wait(_POLL_SECONDS):
                break
        return False

    def _credentials(self) -> str:
        if not self.password:
            return ""
        return f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
