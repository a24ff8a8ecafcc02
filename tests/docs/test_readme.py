"""Every code block of the README runs as described, and its tables agree with the code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import connect

from django_sockets import open_broker
from django_sockets.registry import schemes
from django_sockets.testing import override_broker
from django_sockets.testing.servers import CacheServer, free_port
from django_sockets.url import BrokerOptions, canonical_scheme

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVER_URL = "redis://localhost:6379"
WAIT_SECONDS = 10


class Block(NamedTuple):
    language: str
    source: str
    output: str
    """The `text` block right after it."""


BLOCKS = [
    Block(*found)
    for found in re.findall(
        r"^```(\w*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", README, re.MULTILINE | re.DOTALL
    )
]
PYTHON = [block.source for block in BLOCKS if block.language == "python"]
DJANGO = [source for source in PYTHON if "get_asgi_application" in source]
TESTS = [source for source in PYTHON if "def test_" in source]
SETTINGS = [source for source in PYTHON if "CHANNEL_LAYERS" in source]
SCRIPTS = [
    block
    for block in BLOCKS
    if block.language == "python" and block.source not in DJANGO + TESTS + SETTINGS
]
LINES = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    if block.language == "console"
    for line in block.source.splitlines()
]


def test_every_block_is_tried_by_a_test_below() -> None:
    # tests/browser/test_readme_page.py opens the page.
    assert {block.language for block in BLOCKS} == {"python", "console", "html"}
    assert (len(DJANGO), len(TESTS), len(SETTINGS), len(SCRIPTS)) == (1, 1, 1, 5)
    assert [line for line in LINES if not line.startswith(("make ", "python -m "))] == []


def test_the_examples_are_short() -> None:
    plain = next(block.source for block in SCRIPTS if "class Display" in block.source)
    pages = [block.source for block in BLOCKS if block.language == "html"]
    for source in (*DJANGO, plain, SCRIPTS[0].source, *pages):
        assert sum(1 for line in source.splitlines() if line.strip()) <= 15


def test_the_server_and_the_page_are_on_the_first_screen() -> None:
    first = README.split("\n## ", maxsplit=1)[0].splitlines()
    assert len(first) <= 50
    assert {"```python", "```html", "```console"} <= {*first}


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_prints_what_stands_below_it(number: int, tmp_path: Path) -> None:
    script = SCRIPTS[number]
    ended = subprocess.run(
        [sys.executable, "-c", script.source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == script.output


def test_the_test_passes_and_can_fail() -> None:
    def passes(source: str) -> None:
        names: dict[str, Any] = {}
        exec(source, names)
        (test,) = [value for name, value in names.items() if name.startswith("test_")]
        asyncio.run(test())

    (source,) = TESTS
    passes(source)
    with pytest.raises(AssertionError):
        passes(source.replace("async_send(data)", "async_send('something else')"))


@contextlib.contextmanager
def django_project(folder: Path) -> Iterator[int]:
    """A new project with the README's `asgi.py`, on uvicorn; yields its port."""
    (folder / "mysite").mkdir()
    (folder / "mysite/asgi.py").write_text(DJANGO[0], encoding="utf-8")
    (folder / "mysite/settings.py").write_text(
        'SECRET_KEY = "for this test"\nROOT_URLCONF = "mysite.urls"\n'
        'ALLOWED_HOSTS = ["127.0.0.1"]\n'
    )
    (folder / "mysite/urls.py").write_text(
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        'urlpatterns = [path("", lambda request: HttpResponse("a page"))]\n'
    )
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "mysite.asgi:application", "--port", str(port)],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "Uvicorn running" in line:
                    break
            else:
                pytest.fail("uvicorn ended before it was up")
            yield port
        finally:
            process.kill()


def test_the_django_example_serves_pages_and_lets_browsers_talk(tmp_path: Path) -> None:
    with django_project(tmp_path) as port:
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        page.request("GET", "/")
        assert page.getresponse().read() == b"a page"
        page.close()

        def browser() -> Any:
            address = f"127.0.0.1:{port}"
            return connect(f"ws://{address}/ws/chat/", origin=f"http://{address}", proxy=None)  # type: ignore[arg-type]

        def says(sender: Any, *hearers: Any) -> None:
            sender.send(json.dumps({"text": "hello"}))
            for hearer in hearers:
                assert json.loads(hearer.recv(timeout=WAIT_SECONDS)) == {"text": "hello"}

        with browser() as one:
            says(one, one)  # Only now it is certain that it has subscribed.
            with browser() as other:
                says(other, other, one)
                says(one, other, one)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_make_target_exists(line: str) -> None:
    made = subprocess.run(
        ["make", "--dry-run", *shlex.split(line)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python -m ")])
def test_a_command_line_works(line: str, valkey_server: CacheServer) -> None:
    assert SERVER_URL in line
    command = shlex.split(line.replace(SERVER_URL, valkey_server.url))
    with subprocess.Popen(
        [sys.executable, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if command[3] in ("tail", "top"):
            if command[3] == "tail":
                assert process.stderr.readline().startswith("subscribed to lobby")
            else:
                assert process.stdout.readline().startswith(valkey_server.url)
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_SECONDS) == 130
        else:
            assert process.stdout.read()
            assert process.stderr.read() == ""
            assert process.wait(WAIT_SECONDS) == 0


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins with this header."""
    table = README[README.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in table]


def test_the_table_of_options_is_that_of_the_code() -> None:
    documented = {name: default for name, default, _ in rows("option")}
    fields = dataclasses.fields(BrokerOptions)
    assert documented == {
        field.name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        for field in fields
    }


def test_the_table_of_brokers_has_every_scheme_and_no_other() -> None:
    urls = [url.replace("[name]", "") for url, _ in rows("URL")]
    built_in = {name for name, target in schemes().items() if "django_sockets.backends" in target}
    assert {url.partition("://")[0] for url in urls} == built_in
    for url in urls:
        assert str(open_broker(url).url) == url
    others = re.findall(r"`(valkey[s+a-z]*)://`", README)
    assert [canonical_scheme(name) for name in others] == ["redis", "rediss", "redis+cluster"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_override_broker_keeps_tests_apart() -> None:
    with override_broker() as outer, override_broker() as inner:
        assert outer.url != inner.url
    with override_broker("redis://localhost") as chosen:
        assert str(chosen.url) == "redis://localhost"


def test_the_settings_of_an_existing_channels_project() -> None:
    pytest.importorskip("channels")
    from django.utils.module_loading import import_string

    names: dict[str, Any] = {}
    exec(SETTINGS[0], names)
    layer = names["CHANNEL_LAYERS"]["default"]
    assert "redis://localhost:6379" in repr(import_string(layer["BACKEND"])(**layer["CONFIG"]))
