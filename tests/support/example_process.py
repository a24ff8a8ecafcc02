"""The examples, each in its own process, started by the commands of their READMEs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAIT_SECONDS = 30


def commands(example: str) -> list[str]:
    """Return the lines of the console block in the README."""
    text = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for line in block.splitlines() if line.strip()]


def arguments(line: str, *more: str) -> list[str]:
    """Return a command of a README with the programs of this environment."""
    program, *rest = shlex.split(line)
    start = [sys.executable] if program == "python" else [sys.executable, "-m", program]
    return [*start, *rest, *more]


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SOCKETS_URL"}
    return {**clean, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", **more}


def run(example: str, line: str, **more: str) -> str:
    """Run a command, which must succeed, and return its output."""
    ended = subprocess.run(
        arguments(line),
        cwd=EXAMPLES / example,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


class Running:
    """A process and its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"it ended before it printed {pattern}:\n{self.printed}")

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        """Send SIGINT, as Ctrl-C does, and return the exit status."""
        self.process.send_signal(by)
        assert self.process.stdout is not None
        self.printed += self.process.stdout.read()
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def started(example: str, line: str, *more_arguments: str, **more: str) -> Iterator[Running]:
    """Run a command until the block ends. All of its processes end then."""
    with subprocess.Popen(
        arguments(line, *more_arguments),
        cwd=EXAMPLES / example,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            yield Running(process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
