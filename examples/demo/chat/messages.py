"""The room, and the form of its messages."""

import time

ROOM = "room:lobby"
KEPT_MESSAGES = 100
KEPT_SECONDS = 600
MAX_NAME = 30
MAX_TEXT = 1000


def message(message_id, name, text):
    """The id is different for each message, so that a tab shows none of them twice."""
    return {"id": message_id, "name": name, "text": text, "at": time.time()}
