"""The rooms, and the rule for entering them."""

from typing import NamedTuple


class Room(NamedTuple):
    name: str
    title: str
    staff_only: bool = False


ROOMS = {
    room.name: room
    for room in (
        Room("lobby", "Lobby"),
        Room("garden", "Garden"),
        Room("staff", "Staff", staff_only=True),
    )
}


def may_enter(user, name):
    room = ROOMS.get(name)
    return room is not None and (user.is_staff or not room.staff_only)
