"""Order a report and watch its progress: `python report.py NAME`, while a worker runs."""

import asyncio
import os
import sys

from tasks import build_report

from django_sockets.broadcaster import Broadcaster


async def main(name: str) -> None:
    progress = Broadcaster()
    await progress.async_subscribe(f"report:{name}")  # The order follows, so no step is missed.
    await asyncio.to_thread(build_report.delay, name)
    while True:
        _, data = await progress.async_receive_broadcast()
        print(f"{name}: {data['step']} of {data['of']}", flush=True)
        if data["step"] == data["of"]:
            break
    await progress.aclose()


if __name__ == "__main__":
    if "DJANGO_SOCKETS_URL" not in os.environ:
        sys.exit("Set DJANGO_SOCKETS_URL here and for the worker, because they are two processes.")
    asyncio.run(main(*sys.argv[1:2] or ["sales"]))
