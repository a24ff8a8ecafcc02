"""Authentication: middleware that sets `scope["user"]` before the handshake is accepted.

Each middleware wraps an ASGI application; other connections than websockets pass through unchanged.
This package needs Django. Within the library only `integration` may import it.
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
