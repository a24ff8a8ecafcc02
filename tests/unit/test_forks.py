"""A forked child uses nothing of its parent, and its parent does not notice the child."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IN_CHILD = """
import logging, os, sys, warnings
from django_sockets.forks import PerProcess, abandon_in_child

logging.basicConfig(stream=sys.stdout, format="%(message)s")
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork in a process with threads.

def in_child(call):
    sys.stdout.flush()
    if not os.fork():
        try:
            print(*call())
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.wait()
"""


def run(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", IN_CHILD + textwrap.dedent(code)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def test_a_child_makes_its_own_value_and_the_parent_keeps_the_old_one() -> None:
    output = run("""
        abandoned = []
        state = PerProcess(list, abandoned.append)
        state.current.append("parent")
        in_child(lambda: (state.current, abandoned))
        print(state.current, abandoned)
    """)
    assert output == "[] [['parent']]\n['parent'] []\n"


def test_an_object_that_fails_keeps_no_other_from_abandoning() -> None:
    output = run("""
        class Connection:
            def abandon(self):
                calls.append(len(calls))
                raise OSError("broken")

        calls = []
        connections = [Connection() for _ in range(3)]
        for connection in connections:
            abandon_in_child(connection)
        in_child(lambda: calls)
        print(calls)
    """)
    assert output.count("OSError: broken") == 3
    assert output.endswith("0 1 2\n[]\n")


def test_an_object_is_told_of_a_fork_only_while_it_is_in_use() -> None:
    """Otherwise each Broadcaster, and each connection, would stay in memory forever."""
    output = run("""
        class Connection:
            def __init__(self, name):
                self.name = name

            def abandon(self):
                calls.append(self.name)

        calls = []
        used, ended = Connection("used"), Connection("ended")
        abandon_in_child(used)
        abandon_in_child(ended)
        del ended
        in_child(lambda: calls)
    """)
    assert output == "used\n"


def test_a_broadcaster_with_a_subscription_publishes_and_subscribes_in_the_child() -> None:
    output = run("""
        from django_sockets.broadcaster import Broadcaster

        broadcaster = Broadcaster("memory://forked")
        broadcaster.subscribe("parent")

        def child():
            broadcaster.subscribe("child")
            broadcaster.broadcast(["parent", "child"], 1)
            return broadcaster._connection.calls.plain(broadcaster.async_receive_broadcast)

        in_child(child)
        broadcaster.broadcast("parent", 2)
        print(*broadcaster._connection.calls.plain(broadcaster.async_receive_broadcast))
    """)
    assert output.splitlines()[1:] == ["child 1", "parent 2"]
    assert "separate bus" in output.splitlines()[0]
