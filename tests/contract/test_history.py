"""The contract of the history on every broker that comes with the library."""

from __future__ import annotations

from django_sockets.testing.contract import HistoryContract


class TestMemory(HistoryContract):
    url = "memory://history"
