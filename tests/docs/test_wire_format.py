"""docs/wire-format.md agrees with the code. Readers in other languages depend on it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from django_sockets import open_hub
from django_sockets.delivery.envelope import Publisher, unpack
from django_sockets.testing.servers import CacheServer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "wire-format.md"


def block(language: str) -> str:
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def example() -> bytes:
    rows = block("text").splitlines()
    return b"".join(bytes.fromhex(re.split(r" {2,}", row)[0]) for row in rows)


def reader() -> Any:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    return names["read"]


def test_the_example_is_what_the_code_writes_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 101.5))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    publisher = Publisher()
    publisher.id = bytes.fromhex("0123456789abcdef")
    publisher.headers(["room:1"], True)
    (header,) = publisher.headers(["room:1"], True)
    message = header + '"hé"'.encode()
    assert example().hex(" ") == message.hex(" ")
    assert unpack(example()) == (
        publisher.id,
        2,
        1,
        1_500_000,
        1,
        None,
        '"hé"'.encode(),
    )


def test_the_reader_in_the_document_reads_what_the_code_writes() -> None:
    read = reader()
    publisher = Publisher()
    for is_text, data in ((True, "hé"), (False, b'"h\xc3\xa9"')):
        (header,) = publisher.headers(["c"], is_text, b"origin")
        counter = 1 if is_text else 2
        assert read(header + '"hé"'.encode()) == (publisher.id, counter, counter - 1, data)
    assert read(b'{"somebody": "else"}') is None
    assert read(header[:-1]) is None


async def test_the_name_on_the_server_is_the_documented_one(valkey_server: CacheServer) -> None:
    async with open_hub(valkey_server.url) as hub, hub.subscribe("50% {é}"):
        names = valkey_server.execute("PUBSUB", "CHANNELS", "django_sockets:{50*")
    assert names == ["django_sockets:{50%25 %7Bé%7D}"]
