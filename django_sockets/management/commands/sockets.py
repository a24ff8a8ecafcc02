"""`manage.py sockets {check,publish,tail}`: `python -m django_sockets` on the project's broker."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandParser

from ...__main__ import add_commands, run


class Command(BaseCommand):
    help = "Look at the project's broker, publish to it, listen to it."
    requires_system_checks = ()  # A wrong configuration is for the commands to tell.

    def add_arguments(self, parser: CommandParser) -> None:
        add_commands(parser, names_broker=False)

    def handle(self, *_: Any, **options: Any) -> None:
        # What prints is shared with `python -m`; `call_command(stdout=...)` hears it, too.
        out, err = cast(Any, self.stdout)._out, cast(Any, self.stderr)._out
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(argparse.Namespace(**options))
        if status:
            sys.exit(status)
