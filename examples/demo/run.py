"""Start the demo: `python run.py [--broker URL] [--port N]`, or `make demo` in the checkout.

Exit status: 0 after Ctrl-C, 2 for a wrong broker URL or port.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys

import uvicorn

from django_sockets import BrokerError, ConfigurationError, open_hub

HOST = "127.0.0.1"


def main() -> int:
    parser = argparse.ArgumentParser(description="A page where browser tabs talk to each other.")
    parser.add_argument("--broker", default="memory://", metavar="URL", help="carries the messages")
    parser.add_argument("--port", default=8000, type=port_number, metavar="N")
    arguments = parser.parse_args()
    try:
        serve(arguments.broker, arguments.port)
    except ConfigurationError as exc:
        print(f"--broker: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 (any port) to 65535")
    return int(text)


def serve(url: str, port: int) -> None:
    broker, problem = asyncio.run(look_at_broker(url))
    os.environ["DJANGO_SOCKETS_URL"] = url  # The settings read it.
    listening = listen(port)
    greeting = f"""
  Open    http://{HOST}:{listening.getsockname()[1]}/
  Try     open it in two tabs, let the robot count, and cut the link of one of them
  Broker  {broker}
  Ctrl-C  ends the demo
"""
    if problem is not None:
        greeting += f"\nThe broker does not answer: {problem}\nTabs connect once it does.\n"
    config = uvicorn.Config(
        "project.asgi:application",
        ws="django_sockets.servers.uvicorn:WebSocketProtocol",
        log_level="warning",
        timeout_graceful_shutdown=3,
    )
    Server(config, greeting).run(sockets=[listening])


async def look_at_broker(url: str) -> tuple[str, str | None]:
    """The broker's URL without its password, and the problem of the broker or None.

    Raises:
        ConfigurationError: the URL is wrong.
    """
    logging.disable(logging.WARNING)  # The greeting reports the problem.
    try:
        async with open_hub(url) as hub:
            broker = str(hub.config.url)
            await hub.publish("demo:start", b"")
    except BrokerError as exc:
        return broker, str(exc.__cause__ or exc)
    finally:
        logging.disable(logging.NOTSET)
    return broker, None


def listen(port: int) -> socket.socket:
    """A listening socket on the port, or on a free one if it is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as exc:
        print(f"Port {port} cannot be used ({os.strerror(exc.errno)}), so a free one is used:")
        return socket.create_server((HOST, 0))


class Server(uvicorn.Server):
    """A server that prints its address when it has started."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)


if __name__ == "__main__":
    sys.exit(main())
