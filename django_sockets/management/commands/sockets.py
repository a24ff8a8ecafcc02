"""`manage.py sockets`: the commands of `python -m django_sockets` on the project's broker."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandParser

from ...__main__ import add_commands, run


class Command(BaseCommand):
    help = (
        "Check the project's broker, publish to it, print its messages, present and past, and show "
        "all processes on it."
    )
    requires_system_checks = ()  # The commands report a wrong configuration themselves.

    def add_arguments(self, parser: CommandParser) -> None:
        add_commands(parser, names_broker=False)

    def handle(self, *_: Any, **options: Any) -> None:
        # `run` prints, for `python -m` too. This makes `call_command(stdout=...)` work.
        out, err = cast(Any, self.stdout)._out, cast(Any, self.stderr)._out
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(argparse.Namespace(**options))
        if status:
            sys.exit(status)
