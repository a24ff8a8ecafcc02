/** Channels: one frame, positions, gaps, tokens. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { CHANNEL_EVENTS, answer, connected, record, settled, world } from "./world.js";

/** A channel with its events. */
function channelOf(here, name, options) {
  const channel = here.socket.channel(name, options);
  return { channel, events: record([], channel, CHANNEL_EVENTS) };
}

const names = (events) => events.map(([name]) => name);

test("channels made together are subscribed to in one frame, before the server is ready", async () => {
  const here = world();
  for (const name of ["a", "b", "c"]) here.socket.channel(name);
  await settled();
  here.server.accept();
  const frame = await answer(here, { channel: "a" }, { channel: "b" }, { channel: "c" });
  assert.deepEqual(frame.subscribe, [{ channel: "a" }, { channel: "b" }, { channel: "c" }]);
  here.socket.channel("d");
  here.socket.channel("e");
  const next = await answer(here, { channel: "d" }, { channel: "e" });
  assert.deepEqual(next.subscribe, [{ channel: "d" }, { channel: "e" }]);
});

test("messages arrive with their position, and the position moves first", async () => {
  const here = await connected();
  const { channel, events } = channelOf(here, "a");
  channel.on("message", (data, { position }) => assert.equal(channel.position, position));
  await answer(here, { channel: "a", position: "P0" });
  assert.equal(channel.position, "P0");
  here.server.receive({ channel: "a", data: { n: 1 }, position: "P1" });
  assert.deepEqual(events, [
    ["state", "subscribed"],
    ["message", { n: 1 }, { channel: "a", position: "P1" }],
  ]);
});

test("a listener that fails has had its message: it is not asked for again", async (context) => {
  context.mock.method(console, "error", () => {});
  const here = await connected();
  const { channel } = channelOf(here, "a");
  channel.on("message", () => {
    here.server.end(1006);
    throw new Error("in the listener");
  });
  await answer(here, { channel: "a", position: "P0" });
  here.server.receive({ channel: "a", data: 1, position: "P1" });
  here.clock.advance(1000);
  here.server.accept();
  const frame = await answer(here);
  assert.deepEqual(frame.subscribe, [{ channel: "a", since: "P1" }]);
});

test("after a cut all channels continue from their positions, in one frame", async () => {
  const here = await connected();
  const all = ["a", "b", "c"].map((name) => channelOf(here, name));
  await answer(here, ...["a", "b", "c"].map((channel) => ({ channel, position: `${channel}0` })));
  here.server.receive({ channel: "b", data: 1, position: "b1" });
  here.server.end(1006);
  assert.deepEqual(all.map(({ channel }) => channel.state), ["pending", "pending", "pending"]);
  here.clock.advance(1000);
  here.server.accept();
  const frame = await answer(
    here,
    { channel: "a", position: "a0", recovered: true, count: 0 },
    { channel: "b", position: "b3", recovered: true, count: 2 },
    { channel: "c", position: "c9", recovered: false },
  );
  assert.deepEqual(frame.subscribe, [
    { channel: "a", since: "a0" },
    { channel: "b", since: "b1" },
    { channel: "c", since: "c0" },
  ]);
  here.server.receive({ channel: "b", data: 2, position: "b2" });
  here.server.receive({ channel: "b", data: 3, position: "b3" });
  assert.ok(!names(all[0].events).includes("gap"));
  assert.ok(!names(all[1].events).includes("gap"));
  assert.deepEqual(all[2].events.slice(-2), [
    ["state", "subscribed"],
    ["gap", { channels: ["c"], reason: "resume" }],
  ]);
  assert.deepEqual(
    all[1].events.filter(([name]) => name === "message").map(([, data]) => data),
    [1, 2, 3],
  );
});

test("missed messages that did not all arrive before the next cut are asked for again", async () => {
  const here = await connected();
  const { channel, events } = channelOf(here, "a", { since: "P0" });
  await answer(here, { channel: "a", position: "P3", recovered: true, count: 3 });
  assert.equal(channel.position, "P0", "the position does not jump over them");
  here.server.receive({ channel: "a", data: 1, position: "P1" });
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  const frame = await answer(here, { channel: "a", position: "P3", recovered: true, count: 2 });
  assert.deepEqual(frame.subscribe, [{ channel: "a", since: "P1" }]);
  assert.ok(!names(events).includes("gap"));
});

test("a channel without a history has a gap after each reconnect, and not before", async () => {
  const here = await connected();
  const { events } = channelOf(here, "a");
  await answer(here, { channel: "a" });
  assert.deepEqual(names(events), ["state"]);
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  await answer(here, { channel: "a" });
  assert.deepEqual(names(events), ["state", "state", "state", "gap"]);
});

for (const [what, options, item, gap] of [
  ["without since", {}, { position: "P" }, false],
  ["since, whole", { since: "P" }, { position: "P", recovered: true }, false],
  ["since, not whole", { since: "P" }, { position: "Q", recovered: false }, true],
  ["since, no history", { since: "P" }, {}, true],
  ["a token with a position, whole", { token: "T" }, { recovered: true }, false],
  ["a token without a position", { token: "T" }, { position: "P" }, true],
  ["a token, and since null", { token: "T", since: null }, {}, true],
  ["replay", { replay: 2 }, { position: "P", count: 0 }, false],
]) {
  test(`the first subscription ${what}: ${gap ? "a gap" : "no gap"}`, async () => {
    const here = await connected();
    const { events } = channelOf(here, "a", options);
    await answer(here, { channel: "a", ...item });
    assert.equal(names(events).includes("gap"), gap);
  });
}

test("replay is asked for once; later the position counts", async () => {
  const here = await connected();
  channelOf(here, "a", { replay: 5, presence: true });
  const frame = await answer(here, { channel: "a", position: "P9", count: 0 });
  assert.deepEqual(frame.subscribe, [{ channel: "a", replay: 5, presence: true }]);
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  const next = await answer(here);
  assert.deepEqual(next.subscribe, [{ channel: "a", since: "P9", presence: true }]);
});

test("gaps stand between the messages, on their channels only", async () => {
  const here = await connected();
  const a = channelOf(here, "a");
  const b = channelOf(here, "b");
  await answer(here, { channel: "a" }, { channel: "b" });
  here.server.receive({ channel: "a", data: 1 });
  here.server.receive({ gap: ["a", "other"], reason: "overflow" });
  here.server.receive({ channel: "a", data: 2 });
  assert.deepEqual(names(a.events), ["state", "message", "gap", "message"]);
  assert.deepEqual(a.events[2], ["gap", { channels: ["a"], reason: "overflow" }]);
  assert.deepEqual(names(b.events), ["state"]);
  assert.deepEqual(here.events.at(-1), ["gap", { channels: ["other"], reason: "overflow" }]);
});

test("bytes arrive as bytes", async () => {
  const here = await connected();
  const { events } = channelOf(here, "a");
  await answer(here, { channel: "a" });
  const header = new TextEncoder().encode('{"channel":"a","position":"P"}');
  const frame = new Uint8Array(2 + header.length + 3);
  new DataView(frame.buffer).setUint16(0, header.length);
  frame.set(header, 2);
  frame.set([0, 255, 16], 2 + header.length);
  here.server.receive(frame.buffer);
  assert.deepEqual(events.at(-1), [
    "message", new Uint8Array([0, 255, 16]), { channel: "a", position: "P" },
  ]);
});

test("several uses of a channel share one subscription; the last one ends it", async () => {
  const here = await connected();
  const one = channelOf(here, "a");
  const two = channelOf(here, "a");
  await answer(here, { channel: "a" });
  here.server.receive({ channel: "a", data: 1 });
  one.channel.close();
  one.channel.close();
  assert.deepEqual([one.channel.state, two.channel.state], ["closed", "subscribed"]);
  here.server.receive({ channel: "a", data: 2 });
  await settled();
  assert.deepEqual(here.server.take(), []);
  two.channel.close();
  await settled();
  const [frame] = here.server.take();
  assert.deepEqual(frame.unsubscribe, ["a"]);
  here.server.receive({ channel: "a", data: 3 });
  assert.deepEqual(names(one.events), ["state", "message", "state"]);
  assert.deepEqual(names(two.events), ["state", "message", "message", "state"]);
  here.server.receive({ id: frame.id, ok: {} });
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  await settled();
  assert.deepEqual(here.server.take(), []);
});

test("a channel that is closed and opened again waits for the answer to the unsubscribe", async () => {
  const here = await connected();
  const old = channelOf(here, "a");
  await answer(here, { channel: "a", position: "P5" });
  old.channel.close();
  const next = channelOf(here, "a");
  await settled();
  const [leave, ...more] = here.server.take();
  assert.deepEqual([leave.unsubscribe, more], [["a"], []]);
  here.server.receive({ channel: "a", data: "of the old subscription", position: "P6" });
  here.server.receive({ id: leave.id, ok: {} });
  const frame = await answer(here, { channel: "a", position: "P7" });
  assert.deepEqual(frame.subscribe, [{ channel: "a" }]);
  here.server.receive({ channel: "a", data: "new", position: "P8" });
  assert.deepEqual(next.events.map(([, value]) => value), ["subscribed", "new"]);
});

test("a channel that is opened and closed in one go sends nothing", async () => {
  const here = await connected();
  here.socket.channel("a").close();
  const kept = here.socket.channel("b");
  here.socket.channel("b").close();
  const frame = await answer(here, { channel: "b" });
  assert.deepEqual(frame.subscribe, [{ channel: "b" }]);
  assert.equal(kept.state, "subscribed");
});

test("a channel that is closed before its answer is unsubscribed from", async () => {
  const here = await connected();
  const { channel, events } = channelOf(here, "a");
  await settled();
  const [frame] = here.server.take();
  channel.close();
  here.server.receive({ id: frame.id, ok: { channels: [{ channel: "a" }] } });
  await settled();
  assert.deepEqual(here.server.take()[0].unsubscribe, ["a"]);
  assert.deepEqual(names(events), ["state"]);
});

test("a use with another state than the subscription has a gap", async () => {
  const here = await connected();
  const first = channelOf(here, "a", { token: "T", since: "P1" });
  const twin = channelOf(here, "a", { token: "T", since: "P1" });
  const older = channelOf(here, "a", { token: "T", since: "P0" });
  await answer(here, { channel: "a", position: "P1", recovered: true });
  here.server.receive({ channel: "a", data: 1, position: "P2" });
  const late = channelOf(here, "a", { since: "P1" });
  const now = channelOf(here, "a", { since: "P2" });
  const plain = channelOf(here, "a");
  const signed = channelOf(here, "a", { token: "T" });
  await settled();
  const gaps = [first, twin, older, late, now, plain, signed].map(
    ({ events }) => events.filter(([name]) => name === "gap").length,
  );
  assert.deepEqual(gaps, [0, 0, 1, 1, 0, 0, 1]);
});

test("a refused channel tells why, and does not try again; a new use does", async () => {
  const here = await connected();
  const { channel, events } = channelOf(here, "a");
  const error = { code: "forbidden", message: "no", temporary: false };
  await answer(here, { channel: "a", error });
  assert.deepEqual(events, [["state", "refused"], ["error", error]]);
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  await settled();
  assert.deepEqual(here.server.take(), []);
  assert.equal(channel.state, "refused");
  here.socket.channel("a");
  const frame = await answer(here, { channel: "a" });
  assert.deepEqual(frame.subscribe, [{ channel: "a" }]);
  assert.equal(channel.state, "subscribed");
});

test("a temporary error is tried again after the time the server names, and backs off", async () => {
  const here = await connected();
  const { events } = channelOf(here, "a", { since: "P" });
  const error = { code: "unavailable", message: "", temporary: true };
  await answer(here, { channel: "a", error: { ...error, after: 3 } });
  here.clock.advance(2999);
  await settled();
  assert.deepEqual(here.server.take(), []);
  here.clock.advance(3000);
  const frame = await answer(here, { channel: "a", error });
  assert.deepEqual(frame.subscribe, [{ channel: "a", since: "P" }]);
  // A channel that is made meanwhile does not take the waiting one along.
  here.socket.channel("b");
  assert.deepEqual((await answer(here, { channel: "b" })).subscribe, [{ channel: "b" }]);
  here.clock.advance(2000);
  await answer(here, { channel: "a", recovered: true });
  assert.deepEqual(names(events), ["error", "error", "state"]);
});

test("a subscribe that fails as a whole fails for each channel", async () => {
  const here = await connected();
  const a = channelOf(here, "a");
  const b = channelOf(here, "b");
  await settled();
  const [{ id }] = here.server.take();
  here.server.receive({ id, error: { code: "limit", message: "", temporary: false } });
  assert.deepEqual([a.channel.state, b.channel.state], ["refused", "refused"]);
});

test("answers that make no sense are errors", async () => {
  for (const ok of [null, 5, {}, { channels: 7 }, { channels: [] }, { channels: [null] }, { channels: ["a"] }]) {
    const here = await connected();
    const { channel } = channelOf(here, "a");
    await settled();
    const [{ id }] = here.server.take();
    here.server.receive({ id, ok });
    assert.equal(channel.state, "refused", JSON.stringify(ok));
  }
});

test("frames are split at the limits of the server", async () => {
  const here = world();
  for (let n = 0; n < 100; n++) here.socket.channel(`channel:${n}`, { token: "T".repeat(300) });
  here.server.accept({ limits: { message_bytes: 4096, requests: 64, subscriptions: 1000 } });
  const frames = here.server.take();
  assert.deepEqual(
    frames.flatMap(({ subscribe }) => subscribe.map(({ channel }) => channel)).length, 100,
  );
  for (const frame of frames) assert.ok(JSON.stringify(frame).length <= 4096);
  const few = world();
  for (let n = 0; n < 10; n++) few.socket.channel(`channel:${n}`);
  few.server.accept({ limits: { subscriptions: 4 } });
  assert.ok(few.server.take().every(({ subscribe }) => subscribe.length <= 4));
});

test("more frames than the server takes at a time wait for their turn", () => {
  const here = world();
  for (let n = 0; n < 10; n++) here.socket.channel(`channel:${n}`);
  here.server.accept({ limits: { subscriptions: 1, requests: 2 } });
  const seen = [];
  for (let frames = here.server.take(); frames.length; frames = here.server.take()) {
    assert.ok(frames.length <= 2);
    seen.push(...frames);
    for (const { id, subscribe } of frames) here.server.receive({ id, ok: { channels: subscribe } });
  }
  assert.equal(seen.length, 10);
});

test("what the server subscribes to goes to the socket", async () => {
  const here = await connected();
  here.events.length = 0;
  here.server.receive({ channel: "news", data: 1, position: "P" });
  assert.deepEqual(here.events, [["message", 1, { channel: "news", position: "P" }]]);
});

test("messages of a channel before the answer are dropped: they are no part of the subscription", async () => {
  const here = await connected();
  const { events } = channelOf(here, "a");
  await settled();
  here.server.receive({ channel: "a", data: 0 });
  await answer(here, { channel: "a" });
  here.server.receive({ channel: "a", data: 1 });
  assert.deepEqual(names(events), ["state", "message"]);
});

test("a name that is none is refused", () => {
  const { socket } = world();
  for (const name of ["", undefined, 7, null]) assert.throws(() => socket.channel(name), TypeError);
});

test("channels outlive close and reconnect", async () => {
  const here = await connected();
  const { channel, events } = channelOf(here, "a");
  await answer(here, { channel: "a", position: "P" });
  here.socket.close();
  assert.equal(channel.state, "pending");
  here.socket.reconnect();
  here.server.accept();
  assert.deepEqual((await answer(here, { channel: "a", recovered: true })).subscribe, [
    { channel: "a", since: "P" },
  ]);
  assert.ok(!names(events).includes("gap"));
});
