"""The contract suite on an installed backend of a third party: it passes, and it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(200)

HANGS_SECONDS = 180
"""A run of ten tests takes a busy machine much less."""

BROKERS = '''
"""Brokers of somebody else: a good one, and some that break one promise each."""

import asyncio
import threading

from django_sockets.backends.memory import MemoryBroker


class Good(MemoryBroker):
    pass


class Deaf(MemoryBroker):
    async def subscribe(self, channels):
        pass


class Eager(MemoryBroker):
    """Says that it is subscribed before it is."""

    async def subscribe(self, channels):
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, lambda: loop.create_task(MemoryBroker.subscribe(self, channels)))


class Overtaken(MemoryBroker):
    """A subscribe call takes effect after an unsubscribe call that was made later."""

    async def subscribe(self, channels):
        await asyncio.sleep(0)
        await super().subscribe(channels)


class Clinging(MemoryBroker):
    async def unsubscribe(self, channels):
        if not self._closed:
            await asyncio.sleep(0.01)
        await super().unsubscribe(channels)


class Hasty(MemoryBroker):
    """Lets a later publish overtake an earlier one."""

    async def publish(self, channels, payload, headers=()):
        await asyncio.sleep(len(payload) % 3 / 500)
        await super().publish(channels, payload, headers)


class Careless(MemoryBroker):
    """Publishes to the first channel only."""

    async def publish(self, channels, payload, headers=()):
        await super().publish(channels[:1], payload, headers[:1])


class Confused(MemoryBroker):
    """Takes similar names for the same."""

    async def publish(self, channels, payload, headers=()):
        await super().publish([name.lower() for name in channels], payload, headers)


class Untidy(MemoryBroker):
    async def aclose(self):
        await super().aclose()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class Immortal(MemoryBroker):
    async def aclose(self):
        pass


class Talkative(MemoryBroker):
    def __repr__(self):
        return f"Talkative({self.url.password})"
'''

TESTS = """
import os
import pytest
from django_sockets.testing import ledger
from django_sockets.testing.contract import BrokerContract

ledger.PATIENCE_SECONDS = float(os.environ["PATIENCE_SECONDS"])


class Mine(BrokerContract):
    @pytest.fixture
    def broker_url(self):
        return f"{type(self).__name__[4:].lower()}://bus"


class TestGood(Mine):
    waivers = {
        "test_a_forked_child_publishes_while_its_parent_goes_on_hearing": "lives in one process"
    }
"""

BROKEN = {
    "Deaf": "test_a_message_reaches_every_channel_it_is_published_to",
    "Eager": "test_nothing_published_after_subscribe_returned_is_missed",
    "Overtaken": "test_the_last_call_decides_when_subscribe_and_unsubscribe_race[0]",
    "Clinging": "test_nothing_arrives_after_unsubscribe",
    "Hasty": "test_each_publisher_is_heard_in_the_order_of_its_calls",
    "Careless": "test_one_publish_takes_a_thousand_channels",
    "Confused": "test_similar_channel_names_stay_apart",
    "Untidy": "test_aclose_leaves_nothing_behind",
    "Immortal": "test_a_closed_broker_says_so",
    "Talkative": "test_no_representation_shows_a_password",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The brokers of a third party, as pip would install them, and their tests."""
    (tmp_path / "brokers.py").write_text(BROKERS, encoding="utf-8")
    metadata = tmp_path / "brokers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: brokers\nVersion: 1.0\n", encoding="utf-8")
    points = "".join(f"{name.lower()} = brokers:{name}\n" for name in ("Good", *BROKEN))
    (metadata / "entry_points.txt").write_text(
        f"[django_sockets.brokers]\n{points}", encoding="utf-8"
    )
    classes = "".join(f"\n\nclass Test{name}(Mine):\n    pass\n" for name in BROKEN)
    (tmp_path / "test_brokers.py").write_text(TESTS + classes, encoding="utf-8")
    return tmp_path


def run(package: Path, *tests: str, patience_seconds: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "--asyncio-mode=strict", "--tb=no"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *(f"test_brokers.py::{test}" for test in tests)],
        cwd=package,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(package), *sys.path]),
            "PATIENCE_SECONDS": str(patience_seconds),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_SECONDS,
    )


def test_a_backend_of_somebody_else_passes_and_its_waiver_is_reported(package: Path) -> None:
    result = run(package, "TestGood", patience_seconds=10)
    assert result.returncode == 0, result.stdout
    assert " 1 skipped" in result.stdout
    assert "waived: lives in one process" in result.stdout


def test_a_backend_that_breaks_a_promise_fails_the_test_of_that_promise(package: Path) -> None:
    # Most of these wait in vain.
    tests = (f"Test{name}::{test}" for name, test in BROKEN.items())
    result = run(package, *tests, patience_seconds=1)
    failed = {line.split(" ")[1] for line in result.stdout.splitlines() if "FAILED" in line}
    assert failed == {f"test_brokers.py::Test{name}::{test}" for name, test in BROKEN.items()}


def test_a_waiver_of_a_test_that_does_not_exist_is_refused() -> None:
    from django_sockets.testing.contract import BrokerContract

    with pytest.raises(TypeError, match=r"Mine waives tests that do not exist: \['test_nothing'\]"):

        class Mine(BrokerContract):
            waivers = {"test_nothing": "because"}  # noqa: RUF012
