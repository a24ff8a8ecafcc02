"""The endpoint of a serverless cache, as a program: TLS outside, one cluster node inside.

For `serverless`, which runs it as a process of its own, because it must be able to freeze and die
like a server. It passes on what clients send, except what such a service refuses: in its place goes
a command that the node refuses in the words of the service, so that replies keep their order. What
the node sends back is not looked at. On SIGUSR1 it prints what it has refused.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import signal
import ssl
import sys
from pathlib import Path

import hiredis

__all__ = ["refusal"]

_CHUNK_BYTES = 65536
_PATTERNS = {b"PSUBSCRIBE", b"PUNSUBSCRIBE"}
_UNKNOWN = {b"CONFIG", b"MONITOR", b"DEBUG", b"SAVE", b"BGSAVE", b"REPLICAOF", b"SHUTDOWN", b"ACL"}
_SCRIPTS = {b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL", b"FCALL_RO"}


def refusal(command: list[bytes]) -> str | None:
    """The name of the command if the service refuses it.

    https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/SupportedCommands.html; scripts that
    declare no keys cannot be sent to a node.
    """
    name = command[0].upper()
    if name in _PATTERNS | _UNKNOWN:
        return name.decode()
    if name in _SCRIPTS and len(command) > 2 and command[2] == b"0":
        return name.decode()
    return None
