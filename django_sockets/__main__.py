"""The command line: `python -m django_sockets {check,publish,tail,history,top}`.

`manage.py sockets` has the same commands and uses this module.

Exit status: 0 done; 1 the broker is not usable, or no server offers prepared frames; 2 wrong usage
or configuration; 130 ended by Ctrl-C, which is the normal end of `top`, and of
`tail` without `--count`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from .check import SOURCES, Findings, check, configuration
from .check_server import check_server
from .codec import decode_json, encode
from .conf import load_config
from .delivery.events import Event, Gap, Message, Presence
from .errors import BrokerError, DjangoSocketsError
from .hub.hub import open_hub

logger = logging.getLogger("django_sockets")

OK, NOT_USABLE, WRONG_USAGE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
IN_PROCESS = ("memory", "fakeredis")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m django_sockets",
        description="Check a broker, publish to it, print its messages, present and past, and show "
        "all processes on it.",
        epilog="Exit status: 0 done; 1 the broker is not usable, or no server offers prepared "
        "frames; 2 wrong usage or configuration; 130 ended by Ctrl-C.",
    )
    add_commands(parser, names_broker=True)
    return run(parser.parse_args(_joined(sys.argv[1:] if argv is None else argv)))


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments with `--since=POSITION` for `--since POSITION`, which may begin with "-"."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--since":
            joined[-1] = f"--since={argument}"
        else:
            joined.append(argument)
    return joined


def run(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments, and return the exit status."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # The command prints its errors itself.
    commands = {
        "check": _check,
        "publish": _publish,
        "tail": _tail,
        "history": _history,
        "top": _top,
    }
    try:
        return asyncio.run(commands[arguments.command](arguments))
    except DjangoSocketsError as exc:
        is_stream = arguments.command == "tail" or (
            arguments.command == "top" and not arguments.once
        )
        if arguments.json and not is_stream:
            print(json.dumps({"ok": False, "problem": str(exc)}))
        _say(f"error: {exc}")
        return NOT_USABLE if isinstance(exc, BrokerError) else WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has exited. Without this, the flush at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    finally:
        logger.setLevel(level)


def add_commands(parser: argparse.ArgumentParser, *, names_broker: bool) -> None:
    """Add the commands to a parser.

    Args:
        names_broker: True if all commands but `check` take a URL as their first argument. If False,
            they have an option `--broker`, whose default is the configured broker.
    """
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    example = "such as redis://localhost:6379"

    def command(name: str, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.add_argument("--json", action="store_true", help="print JSON, for programs")
        return added

    def broker(added: argparse.ArgumentParser) -> None:
        if names_broker:
            added.add_argument("url", metavar="URL", help=example)
        else:
            text = f"{example}; without it, the configured one"
            added.add_argument("--broker", dest="url", metavar="URL", help=text)

    checking = command("check", "Check whether a broker is usable, and measure it.")
    checking.add_argument(
        "urls",
        metavar="URL",
        nargs="*",
        help="several for independent hosts that are one broker together; without any: Django's "
        "setting, the environment variable, or memory://",
    )
    checking.add_argument(
        "--server",
        action="store_true",
        help="look at the ASGI servers and not at the broker: which of the installed ones offer "
        "prepared frames, or, with a URL such as ws://localhost:8000/ws/, the running one",
    )
    publishing = command("publish", "Broadcast JSON to a channel.")
    broker(publishing)
    publishing.add_argument("channel", metavar="CHANNEL")
    publishing.add_argument("data", metavar="JSON", type=_json, help="such as '{\"hello\": 1}'")
    tailing = command("tail", "Print what arrives on channels, until Ctrl-C.")
    broker(tailing)
    tailing.add_argument("channels", metavar="CHANNEL", nargs="+")
    tailing.add_argument("--count", metavar="N", type=_count, help="stop after N messages")
    reading = command("history", "Print the kept messages of a channel, the oldest first.")
    broker(reading)
    reading.add_argument("channel", metavar="CHANNEL")
    reading.add_argument(
        "--since",
        metavar="POSITION",
        help="the oldest messages behind this position, written --since=POSITION; without it, the "
        "newest messages",
    )
    reading.add_argument(
        "--limit", metavar="N", type=_count, default=100, help="at most N messages (default: 100)"
    )
    watching = command("top", "Show all processes and their sockets, until Ctrl-C.")
    broker(watching)
    _add_options_of_top(watching)


def _add_options_of_top(watching: argparse.ArgumentParser) -> None:
    watching.add_argument("--once", action="store_true", help="show one survey, and end")
    watching.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        default=2.0,
        help="the time between two surveys, at least 1 (default: 2)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number over 0")
    return int(text)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:  # False for NaN, too.
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 3600")
    return seconds


def _json(text: str) -> Any:
    try:
        return decode_json(text)
    except ValueError as exc:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        raise argparse.ArgumentTypeError(
            f"{shown} is not JSON: {exc} (a text needs quotes of its own: '\"hello\"')"
        ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# check


async def _check(arguments: argparse.Namespace) -> int:
    if arguments.server:
        return await check_server(arguments.urls, as_json=arguments.json)
    findings = await check(*configuration(arguments.urls))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(findings)))
    else:
        _print_findings(findings)
    if findings.problem is not None:
        _say(f"not usable: {findings.problem}")
    return OK if findings.ok else NOT_USABLE


def _print_findings(findings: Findings) -> None:
    rows = [("broker", f"{findings.broker} ({SOURCES[findings.source or 'default']})")]
    if findings.server is not None:
        rows.append(("server", f"{findings.server}; {findings.topology}"))
    if findings.round_trip_ms is not None:
        rows.append(("connect", f"{findings.connect_ms:.2f} ms to an acknowledged subscription"))
        rows.append(("round trip", f"{findings.round_trip_ms:.2f} ms from publish to arrival"))
    rows += [("node", f"{where}: {what}") for where, what in findings.nodes.items()]
    for title, facts in (("features", findings.features), ("limits", findings.limits)):
        if facts:
            rows.append((title, "; ".join(f"{name}: {value}" for name, value in facts.items())))
    rows += [("warning", warning) for warning in findings.warnings]
    if findings.ok:
        rows.append(("verdict", "usable" + (", mind the warnings" if findings.warnings else "")))
    for title, text in rows:
        print(f"{title:<12}{text}")


# publish


async def _publish(arguments: argparse.Namespace) -> int:
    payload, is_text = encode(arguments.data)
    config = load_config(arguments.url)
    _note_in_process(config.url.scheme)
    async with open_hub(config) as hub:
        await hub.publish(arguments.channel, payload, is_text=is_text)
    if arguments.json:
        result = {
            "ok": True,
            "broker": str(config.url),
            "channel": arguments.channel,
            "payload_bytes": len(payload),
        }
        print(json.dumps(result))
    else:
        print(f"published to {arguments.channel!r} on {config.url}: {len(payload)} bytes")
    return OK


def _note_in_process(scheme: str) -> str | None:
    if scheme not in IN_PROCESS:
        return None
    note = f"note: {scheme}:// stays inside this process; no other process takes part"
    _say(note)
    return note


# tail


async def _tail(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.url)
    _note_in_process(config.url.scheme)
    left = arguments.count
    async with open_hub(config) as hub, hub.subscribe(*arguments.channels) as events:
        _say(f"subscribed to {', '.join(arguments.channels)} on {config.url}; Ctrl-C ends")
        logger.setLevel(logging.NOTSET)  # From here on, show log lines about lost connections.
        async for event in events:
            print(_as_json(event) if arguments.json else _as_text(event), flush=True)
            if left is not None and isinstance(event, Message):
                left -= 1
                if not left:
                    break
    return OK


def _as_json(event: Event) -> str:
    """One line of JSON."""
    line: dict[str, Any] = {"time": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    if isinstance(event, Gap):
        line |= {"event": "gap", "channels": event.channels, "reason": event.reason}
        return json.dumps(line)
    if isinstance(event, Presence):
        members = {"joined": event.joined, "left": event.left, "updated": event.updated}
        return json.dumps(line | {"event": "presence", "channel": event.channel, **members})
    line |= {"event": "message", "channel": event.channel}
    if event.position is not None:
        line["position"] = event.position
    return json.dumps(line | _payload_as_json(event.payload))


def _payload_as_json(payload: bytes) -> dict[str, Any]:
    """The payload as `data` if it is JSON, else as `text`, else as `base64`."""
    with contextlib.suppress(ValueError):
        return {"data": decode_json(payload)}
    with contextlib.suppress(ValueError):
        return {"text": payload.decode()}
    return {"base64": base64.b64encode(payload).decode()}


def _as_text(event: Event) -> str:
    now = datetime.datetime.now().astimezone().strftime("%H:%M:%S")
    if isinstance(event, Gap):
        names = ", ".join(event.channels)
        return f"{now} GAP on {names}: messages may be missing here ({event.reason})"
    if isinstance(event, Presence):
        joined, gone = ", ".join(event.joined), ", ".join(event.left)
        return f"{now} {event.channel}: joined: {joined or '-'}; left: {gone or '-'}"
    return f"{now} {event.channel}: {_printable(event.payload)}"


# history


async def _history(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.url)
    _note_in_process(config.url.scheme)
    async with open_hub(config) as hub:
        page = await hub.history(arguments.channel, arguments.since, arguments.limit)
    if arguments.json:
        result = {
            "ok": True,
            "broker": str(config.url),
            "channel": arguments.channel,
            "recovered": page.recovered,
            "position": page.position,
            "more": page.more,
            "messages": [
                {"position": message.position, **_payload_as_json(message.payload)}
                for message in page.messages
            ],
        }
        print(json.dumps(result))
        return OK
    for message in page.messages:
        print(f"{message.position} {_printable(message.payload)}")
    if not page.recovered:
        _say("the messages behind this position are not kept any more")
    more = "; more behind it" if page.more else ""
    print(f"{len(page.messages)} messages; position {page.position}{more}")
    return OK


def _printable(payload: bytes) -> str:
    """The payload as one line without control characters."""
    text = payload.decode(errors="backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


# top


async def _top(arguments: argparse.Namespace) -> int:
    from .observability.top.command import top

    config = load_config(arguments.url)
    note = _note_in_process(config.url.scheme)
    async with open_hub(config) as hub:
        await top(
            hub,
            interval_seconds=arguments.interval,
            once=arguments.once,
            as_json=arguments.json,
            note=note,
        )
    return OK


if __name__ == "__main__":
    sys.exit(main())
