"""A blocking client of the protocol `django-sockets.v1`, as a page without its screen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

WAIT_SECONDS = 45


class ProtocolClient:
    """One connection. Frames that are not awaited yet are kept in `frames`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[Any] = []
        self._ids = itertools.count(1)

    def wait_for(self, wanted: Callable[[Any], bool]) -> Any:
        """Take the first frame that is wanted, from the kept ones or from the server."""
        for number, frame in enumerate(self.frames):
            if wanted(frame):
                return self.frames.pop(number)
        while True:
            frame = json.loads(self.connection.recv(timeout=WAIT_SECONDS))
            if wanted(frame):
                return frame
            self.frames.append(frame)

    def ask(self, **frame: Any) -> Any:
        """Send a frame with an id. Returns the answer: a frame with `ok` or `error`."""
        number = next(self._ids)
        self.connection.send(json.dumps({"id": number, **frame}))
        return self.wait_for(lambda answer: answer.get("id") == number)

    def request(self, type_: str, **data: Any) -> Any:
        """A request. Returns its result, or the `error` of the answer."""
        answer = self.ask(message={"type": type_, **data})
        return answer["ok"] if "ok" in answer else answer["error"]

    def subscribe(self, **entry: Any) -> Any:
        """Subscribe to one channel. Returns its entry of the answer."""
        return self.ask(subscribe=[entry])["ok"]["channels"][0]

    def data(self) -> Any:
        """The data of the next broadcast."""
        return self.wait_for(lambda frame: "channel" in frame and "data" in frame)["data"]


@contextmanager
def protocol_client(
    port: int, path: str = "/ws/", origin: str | None = None, cookie: str = ""
) -> Iterator[ProtocolClient]:
    own = f"http://127.0.0.1:{port}"
    with connect(
        own.replace("http", "ws") + path,
        origin=origin or own,  # type: ignore[arg-type]
        subprotocols=["django-sockets.v1"],  # type: ignore[list-item]
        additional_headers={"Cookie": cookie} if cookie else {},
        proxy=None,
        open_timeout=WAIT_SECONDS,
    ) as connection:
        yield ProtocolClient(connection)
