"""Every example of docs/testing.md runs unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from django_sockets import testing

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
DJANGO = [block for block in BLOCKS if "SocketTestCase" in block]
PYTEST = [block for block in BLOCKS if block not in DJANGO]


def run(folder: Path, *command: str, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**environment, **more, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.usefixtures("valkey_server")  # Where there is none, the example cannot run either.
def test_the_examples_pass_in_pytest(tmp_path: Path) -> None:
    for number, block in enumerate(PYTEST):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    output = run(tmp_path, "pytest", "-p", "no:django", "-v")
    for number, _ in enumerate(PYTEST):
        assert f"test_{number}.py::" in output
    assert "skipped" in output  # The waived test of the contract.
    assert "failed" not in output


def test_the_examples_pass_under_djangos_runner(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(
        'SECRET_KEY = "for this test"\n'
        'INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]\n'
        'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "names"}}\n'
    )
    assert len(DJANGO) == 1
    (tmp_path / "test_names.py").write_text(DJANGO[0])
    assert "Ran 1 test" in run(tmp_path, "django", "test", DJANGO_SETTINGS_MODULE="settings")


def test_every_public_name_is_described() -> None:
    others = {"Broadcast", "CapturedBroadcasts", "FaultyBroker", "HandshakeRefused", "SocketClosed"}
    assert [name for name in {*testing.__all__} - others if f"`{name}" not in TEXT] == []


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
