"""A database engine for tests: SQLite that knows when its connection was ended from outside."""
