"""Print the counter whenever it changes: `python watch.py TOKEN [URL]`. Ctrl-C ends it."""

import json
import sys
from contextlib import suppress

from websockets.sync.client import connect

URL = "ws://127.0.0.1:8000/ws/count/"


def main() -> None:
    token, url = [*sys.argv[1:], URL][:2]
    # A program can send headers. The WebSocket of a page cannot, see counter.js.
    with connect(url, additional_headers={"Authorization": f"Token {token}"}) as socket:
        shown = -1
        for text in socket:
            value = json.loads(text)["value"]
            if value > shown:  # A change may arrive again after a value that includes it.
                shown = value
                print(value, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
