"""Who is behind a websocket: middleware that sets `scope["user"]` before the handshake is accepted.

Each wraps an ASGI application and leaves everything but websockets alone. This package is for
applications on Django: of the library only `integration` may import it, and the core never.
"""

from .drf import DRFTokenAuthMiddleware
from .origin import OriginMiddleware
from .session import SessionAuthMiddleware
from .signals import connect_signals
from .stack import secure
from .token import BaseTokenAuthMiddleware

__all__ = [
    "BaseTokenAuthMiddleware",
    "DRFTokenAuthMiddleware",
    "OriginMiddleware",
    "SessionAuthMiddleware",
    "connect_signals",
    "secure",
]
