"""An example with a login, as a browser without JavaScript sees it."""

from __future__ import annotations

import http.cookiejar
import re
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from support.example_process import WAIT_SECONDS
from support.protocol_client import ProtocolClient, protocol_client


class Site:
    """The pages behind one port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.password = ""

    def log_in(self, name: str) -> Visitor:
        cookies = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
        visitor = Visitor(self, opener, cookies)
        page = visitor.get("/login/")
        assert 'name="username"' in page
        page = visitor.post("/login/", page, username=name, password=self.password)
        assert f"</span>{name}</span>" in page
        return visitor


class Visitor:
    """One browser with its cookies."""

    def __init__(self, site: Site, opener: Any, cookies: http.cookiejar.CookieJar) -> None:
        self.site, self.opener, self.cookies = site, opener, cookies

    def get(self, path: str, data: bytes | None = None) -> str:
        url = f"http://127.0.0.1:{self.site.port}{path}"
        with self.opener.open(url, data, timeout=WAIT_SECONDS) as response:
            return str(response.read().decode())

    def post(self, path: str, page: str, **fields: str) -> str:
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert found is not None
        fields["csrfmiddlewaretoken"] = found[1]
        return self.get(path, urllib.parse.urlencode(fields).encode())

    def socket(self) -> ClientConnection:
        own = f"http://127.0.0.1:{self.site.port}"
        headers = {"Cookie": self._cookie()} if self._cookie() else {}
        return connect(
            own.replace("http", "ws") + "/ws/",
            origin=own,  # type: ignore[arg-type]
            additional_headers=headers,
            proxy=None,
        )

    def page(self) -> AbstractContextManager[ProtocolClient]:
        """A socket of the client protocol."""
        return protocol_client(self.site.port, cookie=self._cookie())

    def _cookie(self) -> str:
        return "; ".join(f"{one.name}={one.value}" for one in self.cookies)
