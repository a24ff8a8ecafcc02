"""`manage.py sockets` runs the commands of `python -m django_sockets` on the project's broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.shop_process import MANAGE, WAIT_SECONDS, environment, run, script

SOCKETS = [*MANAGE, "sockets"]


def test_publish_and_tail_use_the_configured_broker(valkey_server: CacheServer) -> None:
    settings = {"DJANGO_SOCKETS_CONFIG": valkey_server.url}
    with subprocess.Popen(
        [*SOCKETS, "tail", "--json", "--count", "1", "lobby"],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stderr is not None
        assert tail.stdout is not None
        assert tail.stderr.readline().startswith("subscribed to lobby")
        published = run([*SOCKETS, "publish", "--json", "lobby", '{"text": "hello"}'], settings)
        assert (published.returncode, published.stderr) == (0, "")
        assert json.loads(published.stdout)["broker"] == valkey_server.url
        assert json.loads(tail.stdout.read())["data"] == {"text": "hello"}
        assert tail.wait(WAIT_SECONDS) == 0


def test_history_uses_the_configured_rules(valkey_server: CacheServer) -> None:
    config = {"url": valkey_server.url, "history": {"kept:": {"messages": 5, "seconds": 60}}}
    settings = {"DJANGO_SOCKETS_CONFIG": config}
    assert run([*SOCKETS, "publish", "kept:manage", '"hello"'], settings).returncode == 0
    read = run([*SOCKETS, "history", "--json", "kept:manage"], settings)
    assert [message["data"] for message in json.loads(read.stdout)["messages"]] == ["hello"]


def test_ctrl_c_ends_tail(valkey_server: CacheServer) -> None:
    with subprocess.Popen(
        [*SOCKETS, "tail", "--broker", valkey_server.url, "lobby"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stderr is not None
        assert tail.stderr.readline().startswith("subscribed to lobby")
        tail.send_signal(signal.SIGINT)
        assert tail.wait(WAIT_SECONDS) == 130
        assert "Traceback" not in tail.stderr.read()


def test_top_asks_on_the_configured_broker(valkey_server: CacheServer) -> None:
    settings = {"DJANGO_SOCKETS_CONFIG": valkey_server.url}
    text = run([*SOCKETS, "top", "--once"], settings)
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith(f"{valkey_server.url}  0 processes  ")
    away = f"redis://127.0.0.1:{free_port()}?subscribe_timeout_seconds=0.5"
    refused = run([*SOCKETS, "top", "--once", "--json", "--broker", away])
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["ok"] is False


def test_check_says_which_broker_and_whether_it_works(valkey_server: CacheServer) -> None:
    settings = {"DJANGO_SOCKETS_CONFIG": valkey_server.url}
    good = run([*SOCKETS, "check", "--json"], settings)
    found = json.loads(good.stdout)
    assert (good.returncode, found["ok"], found["source"]) == (0, True, "setting")
    bad = run([*SOCKETS, "check"], {"DJANGO_SOCKETS_CONFIG": f"redis://127.0.0.1:{free_port()}"})
    assert bad.returncode == 1
    assert "not usable: " in bad.stderr


def test_a_wrong_configuration_and_wrong_usage_end_with_2() -> None:
    wrong = run([*SOCKETS, "check"], {"DJANGO_SOCKETS_CONFIG": "reddis://localhost"})
    assert wrong.returncode == 2
    assert "did you mean 'redis'" in wrong.stderr
    assert run([*SOCKETS, "publish", "lobby", "not json"]).returncode == 2
    assert run([*SOCKETS, "publish"]).returncode == 2


def test_a_program_can_call_it_and_hears_what_it_prints() -> None:
    printed = script(
        """
        import io, logging
        heard = io.StringIO()
        call_command("sockets", "check", "--json", stdout=heard)
        import json
        print(json.loads(heard.getvalue())["broker"])
        print(logging.getLogger("django_sockets").level)
        """
    )
    assert printed.split() == ["memory://", "0"]


def test_python_m_still_wants_its_url() -> None:
    ended = run([sys.executable, "-m", "django_sockets", "tail", "lobby"])
    assert ended.returncode == 2
    assert "CHANNEL" in ended.stderr
