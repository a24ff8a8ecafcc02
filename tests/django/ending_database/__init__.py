"""A database engine for tests: SQLite that notices when its connection was ended from outside."""
