"""In tests, handlers see the rows of the test, and their changes are rolled back, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_sockets.testing.database import _best

PROJECT = Path(__file__).resolve().parent / "testkit"


def run(*command: str, database: str, tmp_path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "DJANGO_SETTINGS_MODULE": "settings"}
    if database == "file":
        environment["TESTKIT_FILE"] = str(tmp_path / "test.sqlite3")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", *command],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    return output


@pytest.mark.parametrize("database", ["memory", "file"])
def test_djangos_own_runner(database: str, tmp_path: Path) -> None:
    output = run("django", "test", "--noinput", database=database, tmp_path=tmp_path)
    assert re.search(r"Ran 20 tests", output), output


@pytest.mark.parametrize("database", ["memory", "file"])
def test_pytest_django(database: str, tmp_path: Path) -> None:
    options = ["-c", "pytest.ini", "-p", "no:cacheprovider"]
    output = run("pytest", *options, database=database, tmp_path=tmp_path)
    assert "13 passed" in output, output


def test_of_two_connections_the_one_in_a_transaction_is_lent() -> None:
    idle: Any = SimpleNamespace(in_atomic_block=False)
    busy: Any = SimpleNamespace(in_atomic_block=True)
    for found in ([{"default": idle}, {"default": busy}], [{"default": busy}, {"default": idle}]):
        assert _best(*found)["default"] is busy
