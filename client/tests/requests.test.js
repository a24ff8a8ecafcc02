/** Requests: at most once, bounded, and each with an outcome. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { settled, world } from "./world.js";
import { RequestError } from "../src/errors.js";

function connected(hello) {
  const here = world();
  here.server.ready(hello);
  return here;
}

test("a request resolves with what the handler returns", async () => {
  const { socket, server } = connected();
  const reply = socket.request("add", { a: 1 });
  const [frame] = server.take();
  assert.deepEqual(frame.message, { type: "add", a: 1 });
  assert.ok(Number.isInteger(frame.id));
  server.receive({ id: frame.id, ok: { sum: 3 } });
  assert.deepEqual(await reply, { sum: 3 });
  const empty = socket.request("nothing");
  server.receive({ id: server.take()[0].id, ok: null });
  assert.equal(await empty, null);
});

test("an error has the fields of the server", async () => {
  const { socket, server } = connected();
  const reply = socket.request("add");
  const error = { code: "busy", message: "Try again.", temporary: true, after: 3 };
  server.receive({ id: server.take()[0].id, error });
  await assert.rejects(reply, (raised) => {
    assert.ok(raised instanceof RequestError && raised instanceof Error);
    assert.deepEqual({ ...raised, message: raised.message }, { name: "RequestError", ...error });
    return true;
  });
  const odd = socket.request("add");
  server.receive({ id: server.take()[0].id, error: "x" });
  await assert.rejects(odd, { code: "internal", temporary: false });
});

test("requests in flight at a cut reject as temporary, and are never sent again", async () => {
  const here = connected();
  const sent = [here.socket.request("a"), here.socket.request("b")];
  assert.equal(here.server.take().length, 2);
  here.server.end(1006);
  for (const request of sent) {
    await assert.rejects(request, { code: "disconnected", temporary: true });
  }
  here.clock.advance(1000);
  here.server.ready();
  assert.deepEqual(here.server.take(), []);
});

test("a request before the connection waits for ready, not for hello", async () => {
  const here = world();
  const reply = here.socket.request("a");
  here.socket.send("b", { n: 1 });
  here.server.accept();
  assert.deepEqual(here.server.take(), []);
  here.server.receive({ ready: {} });
  const [first, second] = here.server.take();
  assert.deepEqual([first.message, second], [{ type: "a" }, { message: { type: "b", n: 1 } }]);
  here.server.receive({ id: first.id, ok: 1 });
  assert.equal(await reply, 1);
});

test("a request that waits is sent after a reconnect, once", async () => {
  const here = connected();
  here.server.end(1006);
  const reply = here.socket.request("a");
  here.clock.advance(1000);
  here.server.accept().end(1006); // Not ready: it goes on waiting.
  here.clock.advance(2000);
  here.server.ready();
  const [frame] = here.server.take();
  here.server.receive({ id: frame.id, ok: 1 });
  assert.equal(await reply, 1);
});

test("a request times out, before and after it was sent; 10 s are the default", async () => {
  const here = world();
  const unsent = here.socket.request("a", {}, { timeout: 2000 });
  here.clock.advance(2000);
  await assert.rejects(unsent, { code: "timeout", temporary: true });
  here.server.ready();
  assert.deepEqual(here.server.take(), []);
  const sent = here.socket.request("b");
  const [{ id }] = here.server.take();
  here.clock.advance(9999);
  here.server.receive({ ping: 1 });
  here.clock.advance(1);
  await assert.rejects(sent, { code: "timeout" });
  here.server.receive({ id, ok: "late" });
  assert.equal(here.socket.state, "connected");
});

test("a request that times out still takes a place until the server has answered", async () => {
  const here = connected({ limits: { requests: 3 } });
  const first = [here.socket.request("a", {}, { timeout: 1000 }), here.socket.request("b", {}, { timeout: 1000 })];
  const ids = here.server.take().map(({ id }) => id);
  here.clock.advance(1000);
  await Promise.allSettled(first);
  here.socket.request("c").catch(() => {});
  assert.deepEqual(here.server.take(), []);
  here.server.receive({ id: ids[0], ok: 1 });
  assert.equal(here.server.take()[0].message.type, "c");
});

test("the server never has more open requests than it allows, and the order is kept", async () => {
  const here = connected();
  const replies = Array.from({ length: 50 }, (_, n) => here.socket.request("a", { n }));
  const order = [];
  let open = [];
  for (;;) {
    open.push(...here.server.take());
    if (!open.length) break;
    assert.ok(open.length <= 8);
    const { id, message } = open.shift();
    order.push(message.n);
    here.server.receive({ id, ok: message.n });
  }
  assert.deepEqual(order, [...order.keys()]);
  assert.deepEqual(await Promise.all(replies), order);
});

test("subscriptions do not wait behind requests", async () => {
  const here = connected();
  for (let n = 0; n < 20; n++) here.socket.request("slow").catch(() => {});
  here.server.take();
  here.socket.channel("a");
  await settled();
  assert.deepEqual(here.server.take()[0].subscribe, [{ channel: "a" }]);
});

test("at most 100 frames wait", async () => {
  const here = world();
  const waiting = Array.from({ length: 100 }, () => here.socket.request("a"));
  await assert.rejects(here.socket.request("a"), { code: "busy", temporary: true });
  here.socket.send("a");
  await settled();
  assert.deepEqual(here.events.map(([name, error]) => [name, error.code]), [["error", "busy"]]);
  here.socket.close();
  const results = await Promise.allSettled(waiting);
  assert.ok(results.every(({ reason }) => reason.code === "closed" && !reason.temporary));
  await assert.rejects(here.socket.request("a"), { code: "closed" });
});

test("a browser that cannot send fast enough refuses more", async () => {
  const here = connected();
  here.server.bufferedAmount = 5 * 1024 * 1024;
  await assert.rejects(here.socket.request("a"), { code: "busy" });
});

test("a frame that is too large is not sent, in bytes of UTF-8", async () => {
  const here = connected({ limits: { message_bytes: 200 } });
  here.socket.request("a", { text: "x".repeat(150) }).catch(() => {});
  await assert.rejects(here.socket.request("a", { text: "é".repeat(90) }), { code: "too_large", temporary: false });
  here.socket.send("a", { text: "x".repeat(300) });
  await settled();
  assert.equal(here.events.at(-1)[1].code, "too_large");
  assert.equal(here.server.take().length, 1);
  // The limit is known only after hello.
  const early = world();
  const request = early.socket.request("a", { text: "x".repeat(300) });
  early.server.ready({ limits: { message_bytes: 200 } });
  await assert.rejects(request, { code: "too_large" });
});

test("a message that waits too long is told", async () => {
  const here = world();
  here.socket.send("a");
  here.clock.advance(10_000);
  await settled();
  assert.deepEqual(here.events.filter(([name]) => name === "error").map(([, { code }]) => code), ["timeout"]);
});

test("errors about messages reach the socket", () => {
  const here = connected();
  const error = { code: "invalid_message", message: "m", temporary: false };
  here.server.receive({ error });
  assert.deepEqual(here.events.at(-1), ["error", error]);
});

test("a request can be aborted", async () => {
  const here = connected();
  const controller = new AbortController();
  const request = here.socket.request("a", {}, { signal: controller.signal });
  controller.abort();
  await assert.rejects(request, { code: "aborted" });
  await assert.rejects(here.socket.request("b", {}, { signal: AbortSignal.abort() }), { code: "aborted" });
  assert.deepEqual(here.server.take().map(({ message }) => message.type), ["a"]);
});

test("what cannot be a message is refused", async () => {
  const { socket } = connected();
  const circle = {};
  circle.circle = circle;
  for (const [type, data] of [[7, {}], ["a", []], ["a", "x"], ["a", null], ["a", { type: "b" }], ["a", circle], ["a", { n: 1n }]]) {
    await assert.rejects(socket.request(type, data), TypeError);
    if (data !== circle && typeof data?.n !== "bigint") assert.throws(() => socket.send(type, data), TypeError);
  }
});

test("an answer is used once, and unknown ids have no effect", async () => {
  const { socket, server } = connected();
  const reply = socket.request("a");
  const [{ id }] = server.take();
  server.receive({ id: id + 5, ok: "other" }).receive({ id: `${id}`, ok: "text" }).receive({ id });
  server.receive({ id, ok: 1 }).receive({ id, ok: 2 });
  assert.equal(await reply, 1);
});

test("an answer of an old connection has no effect on a new one", async () => {
  const here = connected();
  const old = here.socket.request("a");
  const [{ id }] = here.server.take();
  here.server.end(1006);
  await assert.rejects(old);
  here.clock.advance(1000);
  here.server.ready();
  const next = here.socket.request("b");
  const [frame] = here.server.take();
  assert.notEqual(frame.id, id);
  here.server.receive({ id, ok: "old" }).receive({ id: frame.id, ok: "new" });
  assert.equal(await next, "new");
});

test("timers end with their requests", async () => {
  const here = connected();
  const before = here.clock.timers.size;
  const reply = here.socket.request("a");
  here.server.receive({ id: here.server.take()[0].id, ok: 1 });
  await reply;
  assert.equal(here.clock.timers.size, before);
});
