"""Parts for ASGI servers: they let a broadcast write one frame to many connections.

`uvicorn.py` has the protocol class for uvicorn, `gunicorn.py` the worker class for gunicorn, and
`installed.py` and `running.py` report which server offers prepared frames. docs/server-extension.md
specifies the extension for authors of servers. The servers import these modules; the rest of the
library knows only the ASGI extension.
"""
