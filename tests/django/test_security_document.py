"""The example of docs/security.md runs, and its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from django_sockets.middleware import offer, watch
from django_sockets.testing.client import HandshakeRefused, SocketClient

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/security.md").read_text(encoding="utf-8")


async def test_the_example_lets_in_who_is_logged_in(
    members: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "members.settings")
    source, *_ = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    await members.do(exec, source, names)
    key = await members.do(members.login, await members.do(members.create))
    headers = {"cookie": f"sessionid={key}"}
    async with SocketClient(names["application"], "/ws/desk/", headers=headers) as socket:
        assert await socket.receive_json() == "hello ann"
    with pytest.raises(HandshakeRefused) as refused:
        await SocketClient(names["application"], "/ws/desk/").connect()
    assert refused.value.status == 401


def test_the_names_and_codes_are_those_of_the_code() -> None:
    codes = re.findall(r"^\| ([\d, ]+) \|", DOCUMENT, re.MULTILINE)
    assert str(watch.UNCHECKED) in codes
    assert str(watch.UNAUTHORIZED) in codes
    assert f'"{offer.TOKEN_PROTOCOL}", key' in DOCUMENT
