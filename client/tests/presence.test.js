/** Presence: the list, its events, reconnects, and channels that ask for it later. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { PRESENCE_EVENTS, answer, connected, record, settled } from "./world.js";

/** A channel with presence, its events, and the first list. */
async function watching(list = { ann: [1], bob: [2] }) {
  const here = await connected();
  const channel = here.socket.channel("a", { presence: true });
  const events = record([], channel.presence, PRESENCE_EVENTS);
  await answer(here, { channel: "a", presence: list });
  return { here, channel, events };
}

const change = (here, frame) => here.server.receive({ presence: { channel: "a", ...frame } });
const listOf = (channel) => Object.fromEntries(channel.presence.list());

/** The connection is lost and made again; the server answers with these channels. */
async function reconnect(here, ...channels) {
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.ready();
  return answer(here, ...channels);
}

test("the list is there when the channel is subscribed to; nobody of it has joined", async () => {
  const here = await connected();
  const channel = here.socket.channel("a", { presence: true });
  const events = record([], channel.presence, PRESENCE_EVENTS);
  const lists = [];
  channel.on("state", () => lists.push(listOf(channel)));
  assert.deepEqual(listOf(channel), {});
  const frame = await answer(here, { channel: "a", presence: { ann: [1], bob: [2, 3] } });
  assert.deepEqual(frame.subscribe, [{ channel: "a", presence: true }]);
  assert.deepEqual(lists, [{ ann: [1], bob: [2, 3] }]);
  assert.deepEqual(events, [["sync"]]);
});

test("an empty channel has a list, too", async () => {
  const { channel, events } = await watching({});
  assert.equal(channel.presence.list().size, 0);
  assert.deepEqual(events, [["sync"]]);
});

test("joins, updates and leaves, with the list as it is after all of them", async () => {
  const { here, channel, events } = await watching();
  const lists = [];
  for (const event of PRESENCE_EVENTS) channel.presence.on(event, () => lists.push(listOf(channel)));
  events.length = 0;
  change(here, { joined: { cy: [3] }, left: { ann: [1] }, updated: { bob: [2, 2] } });
  assert.deepEqual(events, [
    ["leave", "ann", [1]],
    ["join", "cy", [3]],
    ["update", "bob", [2, 2]],
    ["sync"],
  ]);
  const after = { bob: [2, 2], cy: [3] };
  assert.deepEqual(lists, [after, after, after, after]);
});

test("a change that is known already has no event of its own", async () => {
  const { here, events } = await watching();
  events.length = 0;
  change(here, { joined: { ann: [1] }, left: { nobody: [1] } });
  assert.deepEqual(events, [["sync"]]);
});

test("a copy of the list is no window into the client", async () => {
  const { channel } = await watching();
  channel.presence.list().clear();
  assert.deepEqual(listOf(channel), { ann: [1], bob: [2] });
});

test("after a reconnect, members that are the same have no event", async () => {
  const { here, events } = await watching();
  events.length = 0;
  await reconnect(here, { channel: "a", recovered: true, presence: { bob: [2], ann: [1] } });
  assert.deepEqual(events, [["sync"]]);
});

test("the order of the infos of a member has no meaning", async () => {
  const { here, events } = await watching({ ann: [{ tab: 1 }, "x", null] });
  events.length = 0;
  await reconnect(here, { channel: "a", presence: { ann: [null, { tab: 1 }, "x"] } });
  assert.deepEqual(events, [["sync"]]);
  await reconnect(here, { channel: "a", presence: { ann: [null, { tab: 1 }] } });
  assert.deepEqual(events.slice(1), [["update", "ann", [null, { tab: 1 }]], ["sync"]]);
});

test("after a reconnect, the differences are events", async () => {
  const { here, channel, events } = await watching();
  here.server.end(1006);
  assert.deepEqual(listOf(channel), { ann: [1], bob: [2] }, "the list stays while the page waits");
  events.length = 0;
  here.clock.advance(1000);
  here.server.ready();
  await answer(here, { channel: "a", presence: { bob: [2, 5], cy: [3] } });
  assert.deepEqual(events, [
    ["leave", "ann", [1]],
    ["update", "bob", [2, 5]],
    ["join", "cy", [3]],
    ["sync"],
  ]);
  assert.deepEqual(listOf(channel), { bob: [2, 5], cy: [3] });
});

test("after lost changes, the server's list counts", async () => {
  const { here, channel, events } = await watching();
  events.length = 0;
  change(here, { sync: { ann: [1], cy: [3] } });
  assert.deepEqual(events, [["leave", "bob", [2]], ["join", "cy", [3]], ["sync"]]);
  assert.deepEqual(listOf(channel), { ann: [1], cy: [3] });
});

test("a long list comes in parts, before the answer or on its own", async () => {
  const here = await connected();
  const channel = here.socket.channel("a", { presence: true });
  const events = record([], channel.presence, PRESENCE_EVENTS);
  await settled();
  change(here, { sync: { ann: [1] }, more: true });
  change(here, { sync: { bob: [2] }, more: true });
  assert.deepEqual([events, listOf(channel)], [[], {}]);
  await answer(here, { channel: "a", presence: {} });
  assert.deepEqual([events, listOf(channel)], [[["sync"]], { ann: [1], bob: [2] }]);
  change(here, { sync: { bob: [2] }, more: true });
  assert.equal(events.length, 1);
  change(here, { sync: { cy: [3] } });
  assert.deepEqual(listOf(channel), { bob: [2], cy: [3] });
  assert.deepEqual(events.slice(1), [["leave", "ann", [1]], ["join", "cy", [3]], ["sync"]]);
});

test("the parts of a list whose connection was lost do not count", async () => {
  const { here, channel, events } = await watching();
  change(here, { sync: { ghost: [9] }, more: true });
  events.length = 0;
  await reconnect(here, { channel: "a", presence: { ann: [1], bob: [2] } });
  assert.deepEqual([events, listOf(channel)], [[["sync"]], { ann: [1], bob: [2] }]);
});

test("a use of `presence` asks for it, in the same frame if it can", async () => {
  const here = await connected();
  here.socket.channel("a").presence.on("sync", () => {});
  here.socket.channel("b").presence.list();
  here.socket.channel("c");
  const frame = await answer(here, { channel: "a" }, { channel: "b" }, { channel: "c" });
  assert.deepEqual(frame.subscribe, [
    { channel: "a", presence: true },
    { channel: "b", presence: true },
    { channel: "c" },
  ]);
});

for (const [when, isAnswered] of [["the answer", true], ["the frame, before the answer", false]]) {
  test(`presence that is wanted after ${when} is asked for on its own`, async () => {
    const here = await connected();
    const first = here.socket.channel("a", { since: "P1" });
    const messages = record([], first, ["message", "gap", "error", "state"]);
    if (!isAnswered) await settled();
    const [sent] = isAnswered ? [] : here.server.take();
    if (isAnswered) await answer(here, { channel: "a", position: "P1", recovered: true, count: 0 });
    const second = here.socket.channel("a", { presence: true, since: "P1" });
    const events = record([], second.presence, PRESENCE_EVENTS);
    await settled();
    if (sent) here.server.receive({ id: sent.id, ok: { channels: [{ channel: "a", recovered: true, count: 0 }] } });
    here.server.receive({ channel: "a", data: 1, position: "P2" });
    const frame = await answer(here, { channel: "a", position: "P9", presence: { ann: [1] } });
    assert.deepEqual(frame.subscribe, [{ channel: "a", presence: true }]);
    assert.deepEqual(events, [["sync"]]);
    assert.deepEqual(listOf(first), { ann: [1] });
    const message = ["message", 1, { channel: "a", position: "P2" }];
    assert.deepEqual(messages, [["state", "subscribed"], message]);
    assert.equal(first.position, "P2", "the answer about presence does not move the position");
  });
}

test("if presence is refused later, the channel goes on without it", async () => {
  const here = await connected();
  const channel = here.socket.channel("a");
  const events = record([], channel, ["message", "error", "state"]);
  await answer(here, { channel: "a" });
  channel.presence.list();
  const error = { code: "forbidden", message: "no", temporary: false };
  await answer(here, { channel: "a", error });
  channel.presence.list();
  await settled();
  assert.deepEqual(here.server.take(), [], "it is not asked for again");
  here.server.receive({ channel: "a", data: 1 });
  assert.deepEqual(events.map(([name]) => name), ["state", "error", "message"]);
  assert.deepEqual(events[1][1], error);
  const frame = await reconnect(here, { channel: "a" });
  assert.deepEqual(frame.subscribe, [{ channel: "a" }], "the channel must not be lost");
  here.socket.channel("a", { presence: true });
  await answer(here, { channel: "a", presence: { ann: [1] } });
  assert.deepEqual(listOf(channel), { ann: [1] });
});

test("if presence cannot be had for a moment, it is asked for again", async () => {
  const here = await connected();
  const channel = here.socket.channel("a");
  await answer(here, { channel: "a" });
  channel.presence.list();
  const error = { code: "unavailable", message: "", temporary: true, after: 1 };
  await answer(here, { channel: "a", error });
  assert.equal(channel.state, "subscribed");
  here.clock.advance(3000);
  await answer(here, { channel: "a", presence: { ann: [1] } });
  assert.deepEqual(listOf(channel), { ann: [1] });
});

test("a subscription that has ended has no list; nobody of it has left", async () => {
  const { here, channel, events } = await watching();
  events.length = 0;
  here.server.receive({ unsubscribed: "a", code: "revoked", again: false });
  assert.deepEqual([channel.state, events, listOf(channel)], ["refused", [["sync"]], {}]);
  change(here, { joined: { eve: [1] } });
  assert.deepEqual(listOf(channel), {});
  here.socket.channel("a");
  await answer(here, { channel: "a", presence: { ann: [1] } });
  assert.deepEqual(events, [["sync"], ["sync"]]);
});

test("all uses have one list, and an ended use has no events", async () => {
  const { here, channel, events } = await watching();
  const other = here.socket.channel("a");
  assert.deepEqual(listOf(other), { ann: [1], bob: [2] });
  channel.close();
  events.length = 0;
  change(here, { left: { ann: [1] } });
  assert.deepEqual(events, []);
  assert.deepEqual(listOf(other), { bob: [2] });
  other.close();
  await settled();
  assert.deepEqual(here.server.take().map(({ unsubscribe }) => unsubscribe), [["a"]]);
});

test("changes for an ended subscription do not reach the next one", async () => {
  const { here, channel } = await watching();
  channel.close();
  const next = here.socket.channel("a", { presence: true });
  const events = record([], next.presence, PRESENCE_EVENTS);
  await settled();
  change(here, { joined: { eve: [1] } });
  const [{ id }] = here.server.take();
  here.server.receive({ id, ok: {} });
  await answer(here, { channel: "a", presence: { ann: [1] } });
  assert.deepEqual([events, listOf(next)], [[["sync"]], { ann: [1] }]);
});

test("a listener may close the channel between two events", async () => {
  const { here, channel, events } = await watching();
  channel.presence.on("leave", () => channel.close());
  events.length = 0;
  change(here, { left: { ann: [1], bob: [2] } });
  assert.deepEqual(events, [["leave", "ann", [1]]]);
});

test("keys may be any text, and infos any data", async () => {
  const { here, channel, events } = await watching({ constructor: [{ "": null }], 7: [[]] });
  events.length = 0;
  change(here, JSON.parse('{"joined": {"__proto__": [{"a": 1}], "bad": 5}}'));
  assert.deepEqual(events, [["join", "__proto__", [{ a: 1 }]], ["sync"]]);
  assert.deepEqual([...channel.presence.list().keys()].sort(), ["7", "__proto__", "constructor"]);
  assert.equal({}.a, undefined);
});

test("the channel's own event has the list or the change as the server sent it", async () => {
  const here = await connected();
  const channel = here.socket.channel("a", { presence: true });
  const events = record([], channel, ["presence"]);
  await answer(here, { channel: "a", presence: { ann: [1] } });
  change(here, { joined: { bob: [2] }, left: {} });
  change(here, { sync: { cy: [3] } });
  assert.deepEqual(events, [
    ["presence", { present: { ann: [1] } }],
    ["presence", { joined: { bob: [2] }, left: {} }],
    ["presence", { present: { cy: [3] } }],
  ]);
});
