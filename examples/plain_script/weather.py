"""A station that publishes and a display that listens, without any server.

`python weather.py` is both, in one process. `python weather.py display` and
`python weather.py station` are one each: for two terminals, and a
cache that DJANGO_SOCKETS_URL names.
"""

import asyncio
import sys
import time

from django_sockets.broadcaster import Broadcaster

CHANNEL = "weather"
CELSIUS = [18.5, 19.0, 19.5]


def station() -> None:
    """Plain calls, as from any script: each returns when the broker has the message."""
    broadcaster = Broadcaster()
    for celsius in CELSIUS:
        broadcaster.broadcast(CHANNEL, {"celsius": celsius})
        time.sleep(0.2)


async def display(subscribed: asyncio.Event) -> None:
    """As many values as the station sends."""
    broadcaster = Broadcaster()
    await broadcaster.async_subscribe(CHANNEL)
    subscribed.set()
    print("waiting for the weather", flush=True)
    for _ in CELSIUS:
        _, data = await broadcaster.async_receive_broadcast()
        print(f"{data['celsius']} °C", flush=True)
    await broadcaster.aclose()


async def both() -> None:
    subscribed = asyncio.Event()
    listening = asyncio.create_task(display(subscribed))
    await subscribed.wait()  # Nothing is kept for who comes later.
    await asyncio.to_thread(station)
    await listening


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            asyncio.run(both())
        case ["station"]:
            station()
        case ["display"]:
            asyncio.run(display(asyncio.Event()))
        case _:
            sys.exit(__doc__)
