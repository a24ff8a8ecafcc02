"""SQLite, with a check of the connection as the backends of database servers have it."""

from __future__ import annotations

import sqlite3
from typing import Any

from django.db.backends.sqlite3 import base

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper):
    def is_usable(self) -> bool:
        connection: Any = self.connection
        try:
            connection.execute("SELECT 1")
        except sqlite3.Error:
            return False
        return True
