"""Plain scripts print exactly their expected output, on every Python, also on a busy machine.

The scripts are those in tests/scripts and, where the variable DJANGO_SOCKETS_DOCUMENT names a text
file, the Python blocks of that file. The lines that begin with `#=>` are the expected output.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from django_sockets.testing.servers import ValkeyServer

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
REPEATS = int(os.environ.get("DJANGO_SOCKETS_SCRIPT_REPEATS", "5"))
DOCUMENT = os.environ.get("DJANGO_SOCKETS_DOCUMENT")
DEFAULT_PORT = 6379
BUSY_PROCESSES = 2

# The scripts pause for 0.1 s while the test loads the machine itself. It must run alone.
pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]


class Script(NamedTuple):
    name: str
    source: str
    output: str


def scripts() -> list[Script]:
    found = [
        (path.name, path.read_text(encoding="utf-8"))
        for path in sorted((Path(__file__).parent / "scripts").glob("*.py"))
    ]
    if DOCUMENT:
        text = Path(DOCUMENT).read_text(encoding="utf-8")
        blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found += [(f"document-{number}", block) for number, block in enumerate(blocks, 1)]
    return [Script(name, source, expected(source)) for name, source in found]


def expected(source: str) -> str:
    lines = re.findall(r"^# ?=> (.*)$", source, re.MULTILINE)
    return "".join(f"{line}\n" for line in lines if line != "Output:")


def interpreter(version: str) -> str | None:
    """A Python of this version that runs; a version manager's stub may exist and fail."""
    for candidate in (sys.executable, shutil.which(f"python{version}")):
        if candidate is not None:
            asked = subprocess.run(
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.stdout.strip() == version:
                return candidate
    return None


@pytest.fixture(scope="module")
def default_server() -> Iterator[None]:
    """A server where scripts look for it by default; one user of the port at a time."""
    with (Path(tempfile.gettempdir()) / "django-sockets-6379.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) == 0
        if taken:
            yield
            return
        with ValkeyServer(port=DEFAULT_PORT):
            yield


@pytest.fixture
def busy_machine() -> Iterator[None]:
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)
    ]
    yield
    for process in busy:
        process.kill()
        process.wait()


def environment(version: str, wheel: Path, folder: Path) -> Path | str:
    """A Python with the wheel and what a script needs, or the reason why there is none.

    Django, the slow part, is not installed.
    """
    found = interpreter(version)
    if found is None:
        return f"no Python {version}"
    subprocess.run([found, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
    made = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", made, "install"]
    for what in (["--no-deps", wheel], ["--no-compile", "msgspec", "redis[hiredis]"]):
        done = subprocess.run([*pip, *what], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"cannot install {what[-1]}: {done.stderr}"
    return made


@pytest.fixture(scope="module")
def environments(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """Version -> its environment. They are made at the same time."""
    folders = [tmp_path_factory.mktemp("python") / "venv" for _ in VERSIONS]
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        made = pool.map(environment, VERSIONS, [wheel] * len(VERSIONS), folders)
        return dict(zip(VERSIONS, made, strict=True))


@pytest.fixture(params=VERSIONS)
def python(
    request: pytest.FixtureRequest,
    environments: dict[str, Path | str],
    missing: Callable[[str], NoReturn],
) -> Path:
    made = environments[request.param]
    if isinstance(made, str):
        missing(made)
    return made


@pytest.mark.usefixtures("default_server")
def test_every_script_prints_what_it_says_every_time(
    python: Path,
    busy_machine: None,  # After the environments, which take long enough without it.
    tmp_path: Path,
) -> None:
    variables = {name: value for name, value in os.environ.items() if "DJANGO" not in name}

    def run(script: Script) -> tuple[str, str, str, int]:
        done = subprocess.run(
            [python, "-I", "-c", script.source],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return script.name, done.stdout, done.stderr, done.returncode

    def run_often(script: Script) -> list[tuple[str, str, str, int]]:
        # One copy after the other: copies share the server and would hear each other.
        return [run(script) for _ in range(REPEATS)]

    with ThreadPoolExecutor() as pool:
        for script, results in zip(scripts(), pool.map(run_often, scripts()), strict=True):
            assert results == [(script.name, script.output, "", 0)] * REPEATS
