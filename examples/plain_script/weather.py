"""A weather station that publishes and a display that listens, without a web server.

`python weather.py` runs both in one process. `python weather.py display` and
`python weather.py station` run one of them each, in two terminals; they need a cache whose URL is
in DJANGO_SOCKETS_URL.
"""

import asyncio
import sys
import time

from django_sockets.broadcaster import Broadcaster

CHANNEL = "weather"
CELSIUS = [18.5, 19.0, 19.5]


def station() -> None:
    """Publish with plain calls. Each returns when the broker has the message."""
    broadcaster = Broadcaster()
    for celsius in CELSIUS:
        broadcaster.broadcast(CHANNEL, {"celsius": celsius})
        time.sleep(0.2)


async def display(subscribed: asyncio.Event) -> None:
    """Print as many values as the station sends."""
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
    await subscribed.wait()  # The broker keeps no messages for later subscribers.
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
