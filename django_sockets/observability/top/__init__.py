"""`sockets top`: the picture of all processes in a terminal.

- `text`: texts of other programs and numbers, as a terminal may show them.
- `tables`: tables that fit a width.
- `picture`: a snapshot as lines, without a terminal.
- `screen`: the full screen, with rich.
- `command`: asks the processes, and prints or draws the answers.

From the first to the last, a module imports only those above it. `screen` is the only one that
needs rich.
"""
