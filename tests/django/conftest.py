"""The project in `testkit` is run by subprocesses only."""

collect_ignore = ["testkit"]
