"""What members cost the server and the processes, by the counts of a real server.

If one of these fails, a deploy or a large room costs a command or a message for each socket.
"""

from __future__ import annotations

import pytest

from benchmarks.presence_cost import measure, measure_staying
from django_sockets.testing.servers import CacheServer

MEMBERS = 10_000


@pytest.mark.load
async def test_a_channel_with_many_members(fresh_valkey_server: CacheServer) -> None:
    costs = await measure(fresh_valkey_server, MEMBERS)
    print(costs)
    # Joins of one turn of the event loop share a call.
    assert 1 <= costs.join_commands["script"] == costs.join_commands["publish"] <= MEMBERS / 20
    # The time of this process: a busy machine does not change it much. 20,000 and more are usual.
    assert costs.joins_per_cpu_second >= 1000
    # The channel and its watch are subscribed, and the list is read once.
    assert costs.list_commands["hgetall"] == 1
    assert costs.list_commands["script"] <= 1  # The newcomer looks which processes are dead.
    assert costs.list_commands["subscribe"] == 2
    assert costs.another_commands == {}
    assert costs.change_commands == {"script": 1, "publish": 1}
    assert costs.change_messages == [1, 1, 1, 1]


@pytest.mark.parametrize("members", [1, 2000])
async def test_staying_costs_one_command_for_each_process_and_interval(
    fresh_valkey_server: CacheServer, members: int
) -> None:
    staying = await measure_staying(fresh_valkey_server, members)
    assert staying.renewals >= 3
    # A renewal of each process may lie between the two counts.
    assert abs(staying.commands.pop("script") - staying.renewals) <= 3
    assert staying.commands == {}
