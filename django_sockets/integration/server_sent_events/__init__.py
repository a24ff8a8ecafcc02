"""Server-sent events: a Django view that streams channels to clients without websockets."""

from .event_ids import event_id
from .view import events_view

__all__ = ["event_id", "events_view"]
