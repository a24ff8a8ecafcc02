"""The leases of processes: when they begin and end, and which processes are dead."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from ...presence import ADOPTED_AT_ONCE, LeaseAction, LeaseState
from .presence_room import LONG_SECONDS, PresenceRoom, PresenceTests

__all__ = ["LeaseContract"]

NEW, RENEW, END, LOOK = LeaseAction.NEW, LeaseAction.RENEW, LeaseAction.END, LeaseAction.LOOK
OK, ENDED, UNKNOWN = LeaseState.OK, LeaseState.ENDED, LeaseState.UNKNOWN
SHORT_SECONDS = 0.2


class LeaseContract(PresenceTests):
    """The promises of `SupportsPresence` on leases, while the server works."""

    async def test_a_lease_begins_and_is_renewed(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        assert (await here.lease("a", LOOK)).state is UNKNOWN
        assert (await here.lease("a", RENEW)).state is UNKNOWN
        begun = await here.lease("a", NEW)
        assert (begun.state, begun.dead) == (OK, frozenset())
        assert begun.soonest_ms == begun.now_ms + LONG_SECONDS * 1000
        looked = await there.lease("b", LOOK)
        assert (looked.state, looked.soonest_ms) == (UNKNOWN, begun.soonest_ms)
        renewed = await here.lease("a", RENEW, LONG_SECONDS * 2)
        assert renewed.state is OK
        assert renewed.soonest_ms == renewed.now_ms + LONG_SECONDS * 2000
        assert renewed.now_ms >= looked.now_ms >= begun.now_ms
        # Repeating the call that began it is harmless, if its reply was lost.
        assert (await here.lease("a", NEW)).state is OK

    async def test_the_next_end_is_that_of_the_shortest_lease(self, here: PresenceRoom) -> None:
        assert (await here.lease("none", LOOK)).soonest_ms is None
        await here.lease("long", NEW, 500)
        short = await here.lease("short", NEW, 100)
        assert short.soonest_ms == short.now_ms + 100_000
        await here.lease("short", END, 500)
        last = await here.lease("long", LOOK, 500)
        assert last.soonest_ms is not None
        assert 0 < last.soonest_ms - last.now_ms <= 500_000

    async def test_a_lease_that_is_not_renewed_ends(
        self, here: PresenceRoom, there: PresenceRoom
    ) -> None:
        await here.lease("a", NEW, SHORT_SECONDS)
        await here.lease("b", NEW, LONG_SECONDS)
        reply = await there.until_dead("a")
        assert reply.dead == {"a"}
        assert (await there.lease("a", LOOK)).state is ENDED
        assert (await there.lease("b", LOOK)).state is OK

    async def test_an_ended_lease_is_never_revived(self, here: PresenceRoom) -> None:
        await here.lease("slow", NEW, SHORT_SECONDS)
        await here.until_dead("slow")
        await here.lease("left", NEW)
        assert (await here.lease("left", END)).state is ENDED
        for process in ("slow", "left"):
            for action in (RENEW, NEW, END, LOOK):
                reply = await here.lease(process, action, grace=60)
                assert reply.state is ENDED
                assert reply.dead == {"slow", "left"}
        adopted = await here.lease("b", NEW, adopt=["slow", "left"])
        assert adopted.dead == {"slow", "left"}

    async def test_a_process_that_leaves_has_the_grace_that_it_asks_for(
        self, here: PresenceRoom
    ) -> None:
        await here.lease("a", NEW)
        leaving = await here.lease("a", END, grace=50)
        assert (leaving.state, leaving.dead) == (OK, frozenset())
        assert leaving.soonest_ms == leaving.now_ms + 50_000
        await here.lease("b", NEW, SHORT_SECONDS)
        await here.lease("b", END, SHORT_SECONDS, grace=0.01)
        assert (await here.until_dead("b")).dead == {"b"}
        assert (await here.lease("a", LOOK)).state is OK
        # A process that the server does not know is known to have left.
        gone = await here.lease("c", END)
        assert gone.state is ENDED
        assert gone.dead == {"b", "c"}

    async def test_unknown_owners_are_adopted_for_one_lease(self, here: PresenceRoom) -> None:
        await here.lease("known", NEW, LONG_SECONDS)
        first = await here.lease("me", NEW, SHORT_SECONDS, adopt=["known", "stranger"])
        assert first.dead == frozenset()
        # An adopted process that lives renews its lease like any other.
        assert (await here.lease("stranger", LOOK, SHORT_SECONDS)).state is OK
        assert (await here.until_dead("stranger")).dead >= {"stranger"}
        assert (await here.lease("known", LOOK)).state is OK

    async def test_many_owners_are_adopted_at_once(self, here: PresenceRoom) -> None:
        ids = [uuid.uuid4().hex for _ in range(ADOPTED_AT_ONCE)]
        assert (await here.lease("me", NEW, adopt=ids)).dead == frozenset()
        for one in ids[:3] + ids[-3:]:
            assert (await here.lease(one, RENEW)).state is OK
        with pytest.raises(ValueError, match="adopt has 1001"):
            await here.lease("me", LOOK, adopt=[*ids, "one"])

    async def test_after_a_time_without_calls_the_living_get_a_whole_lease(
        self, here: PresenceRoom
    ) -> None:
        """The server was away, or so it seems to it: nobody could renew."""
        await here.lease("left", NEW, SHORT_SECONDS)
        await here.lease("left", END, SHORT_SECONDS)
        await here.lease("b", NEW, LONG_SECONDS)
        await here.lease("a", NEW, SHORT_SECONDS)
        await asyncio.sleep(2 * SHORT_SECONDS)  # Longer than the lease, on any machine.
        back = await here.lease("me", LOOK, SHORT_SECONDS)
        assert back.dead == {"left"}
        assert back.soonest_ms == back.now_ms + SHORT_SECONDS * 1000
        # It ends like any other; and a longer one was not shortened.
        assert (await here.until_dead("a")).dead == {"left", "a"}

    async def test_each_server_has_its_own_leases(self, here: PresenceRoom) -> None:
        servers = here.presence.lease_servers
        assert len(set(servers)) == len(servers) >= 1
        channels = [f"{here.channel}:{number}" for number in range(100)]
        assert {here.presence.lease_server_of(channel) for channel in channels} == set(servers)
        for number, server in enumerate(servers):
            assert (await here.lease(f"p{number}", NEW, server=server)).state is OK
            await here.lease(f"p{number}", END, server=server)
        for number, server in enumerate(servers):
            assert (await here.lease("me", LOOK, server=server)).dead == {f"p{number}"}
        with pytest.raises(ValueError, match="no lease server"):
            await here.lease("me", LOOK, server="nowhere")

    async def test_wrong_arguments_are_named(self, here: PresenceRoom) -> None:
        for process in ("", ":last", "a:b", "a\n", "ä", "x" * 65):
            with pytest.raises(ValueError, match="is no process id"):
                await here.lease(process, NEW)
            with pytest.raises(ValueError, match="is no process id"):
                await here.lease("me", NEW, adopt=[process])
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="lease_seconds="):
                await here.lease("me", NEW, seconds)
        for grace in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="grace_seconds="):
                await here.lease("me", END, grace=grace)
