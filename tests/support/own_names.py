"""Names that applications give to methods and attributes of sockets, and classes full of them.

As a pytest plugin (`-p support.own_names`), it puts these classes in the place of the library's.
"""

from __future__ import annotations

from typing import Any

from django_sockets import broadcaster, sockets

WORDS = """
account action add admit alive app at_exit auth authenticate backend backlog begin broadcaster
broker buffer cache call called calls cancel chain channel channels check client client_gone
clients closed closing code codes command conclude conn connected connection_id connections
consume context control controls count counter counters cursor data database db deliver delivery
disconnected discard discarded dispatch do drain drop dropped emit encode end ended event events
failed failures fetch finish finished flush frame game group groups handle handle_message
handler handlers heartbeat hold hold_expired home home_calls host hub id idle idle_timer inbox
inbox_failed index info init items join joined keepalive kind last last_seen lease leave left
limit limits listen listener listeners lobby lock log logger loop loops member members message
messages method mode mute name new_backlog next no_send note notify number offset on_close_order
on_connect on_delivery on_disconnect on_drain on_gap on_message open options origin outbox over
overran owner params parse pass_on path payload peer peers pending ping player players policy poll
pong position process profile protocol publish push put query queue queues rate read
reader ready receive_loop receiver reconnect redis refresh register reject reload remote remove
reply request reset resume retry role room rooms route run save seen sender sent sequence serve
server serving session sessions settings shared_hub shutdown slow socket sockets start started
state stats status stop stopped store stream streams subscriber subscriptions sync take task tasks
tenant tick timeout timer token topic topics transport try_send update url user user_id username
users validate version view wait waiting warn warned watch worker workers write writer ws
""".split()

NAMES = [name for word in WORDS for name in (word, f"_{word}")]
"""None of these is a documented name of the library, except `Broadcaster.position`."""


def methods() -> dict[str, Any]:
    """A class body with a method of every name; the library must call none of them."""

    def method(name: str) -> Any:
        def called(self: object, *args: object, **kwargs: object) -> None:
            raise AssertionError(f"the library has called {name} of {type(self).__name__}")

        return called

    return {name: method(name) for name in NAMES}


def values() -> dict[str, Any]:
    """A class body with an attribute of every name."""
    return {name: f"value of {name}" for name in NAMES}


class Methods(sockets.BaseSocketServer):
    """Its methods have every name."""

    vars().update(methods())


class WithValues:
    """Its objects have attributes of every name, before and after they are set up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self).update(values())
        super().__init__(*args, **kwargs)
        self.check_values()
        vars(self).update(values())

    def check_values(self) -> None:
        """Raise an AssertionError if one of them has another value."""
        changed = [name for name, value in values().items() if vars(self)[name] != value]
        assert not changed, f"the library has set {changed}"


class Attributes(WithValues, sockets.BaseSocketServer):
    """A socket with these attributes."""


class BroadcasterMethods(broadcaster.Broadcaster):
    """Its methods have every name."""

    vars().update(methods())


class BroadcasterAttributes(WithValues, broadcaster.Broadcaster):
    """A broadcaster with these attributes."""


def pytest_configure() -> None:
    """Test modules that are imported after this find classes with methods of every name."""
    sockets.BaseSocketServer = Methods  # type: ignore[misc]
    broadcaster.Broadcaster = BroadcasterMethods  # type: ignore[misc]
