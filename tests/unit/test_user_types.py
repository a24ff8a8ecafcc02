"""Classes as the documentation shows them pass a type check, such as `disconnect(self)`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy comes with the extra dev")

CODE = Path(__file__).resolve().parents[1] / "support" / "user_code.py"


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.timeout(180)
def test_every_way_to_write_a_hook_passes_mypy(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from django_sockets.sockets import BaseSocketServer\n"
        "class Wrong(BaseSocketServer):\n"
        "    def receive(self) -> None: ...\n"
    )
    cache = f"--cache-dir={tmp_path / 'cache'}"
    ended = mypy(cache, "--follow-imports=silent", CODE)
    assert ended.returncode == 0, ended.stdout
    # The classes are known to mypy, and not taken for Any.
    ended = mypy(cache, "--follow-imports=silent", wrong)
    assert 'Signature of "receive" incompatible' in ended.stdout, ended.stdout + ended.stderr
