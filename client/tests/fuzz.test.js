/** Frames at random do not crash the client, or make it send more than answers. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { HELLO, settled, world } from "./world.js";

const FRAMES = Number(process.env.DJANGO_SOCKETS_FUZZ_INPUTS ?? 100_000);
const SEED = Number(process.env.DJANGO_SOCKETS_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** A generator of random numbers with a seed (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}

const random = generator(SEED);
const pick = (values) => values[Math.floor(random() * values.length)];
const KEYS = `
  hello ready id ok error channel data position gap reason presence joined left updated sync more unsubscribed code again
  bye after ping pong channels recovered count expires_in limits message_bytes requests subscriptions
  session version message temporary __proto__ constructor toString length
`.trim().split(/\s+/);
const LEAVES = [
  null, true, false, 0, -1, 1, 2, 3, 1.5, 1e308, 2 ** 53, "", "a", "b", "P1", "x".repeat(600), "\u0000", "💥",
  [], {}, ["a"], ["a", "b"], [null], [0, 1],
];

function value(depth) {
  const kind = random();
  if (depth > 3 || kind < 0.5) return pick(LEAVES);
  if (kind < 0.6) return Array.from({ length: Math.floor(random() * 4) }, () => value(depth + 1));
  const made = {};
  for (let n = Math.floor(random() * 5); n > 0; n--) {
    Object.defineProperty(made, pick(KEYS), { value: value(depth + 1), enumerable: true, configurable: true, writable: true });
  }
  return made;
}

/** Frames that a server could send, so that the fuzz gets behind the first checks. */
const LIKELY = [
  () => ({ hello: { ...HELLO, limits: value(2), ping: value(3) } }),
  () => ({ ready: {} }),
  () => ({ id: pick([1, 2, 3, 4, 5, 6, 7]), ok: { channels: [value(1), value(1)] } }),
  () => ({ id: pick([1, 2, 3, 4, 5, 6, 7]), ok: { channels: [{ channel: "a", expires_in: value(3), count: value(3) }] } }),
  () => ({ id: Math.floor(random() * 200), error: value(2) }),
  () => ({ channel: pick(["a", "b", "c"]), data: value(1), position: value(3) }),
  () => ({ unsubscribed: pick(["a", "b"]), code: value(3), again: value(3) }),
  () => ({ gap: value(2), reason: value(3) }),
  () => ({ presence: value(1) }),
  () => ({ presence: { channel: pick(["a", "b"]), [pick(["sync", "joined", "left", "updated"])]: value(2), more: pick([true, undefined]) } }),
  () => ({ ping: value(3) }),
];

function frame() {
  const kind = random();
  if (kind < 0.4) return pick(LIKELY)();
  if (kind < 0.8) return value(0);
  if (kind < 0.9) {
    const bytes = new Uint8Array(Math.floor(random() * 40));
    for (let n = 0; n < bytes.length; n++) bytes[n] = n === 0 ? 0 : Math.floor(random() * 256);
    return bytes.buffer;
  }
  const text = JSON.stringify(value(0));
  return text.slice(0, Math.floor(random() * text.length));
}

test(`${FRAMES} frames (DJANGO_SOCKETS_FUZZ_SEED=${SEED})`, async () => {
  let here;
  let sent = 0;
  let messages = 0;
  let syncs = 0;
  const fresh = () => {
    here?.socket.close();
    here = world({ random: random() });
    for (const name of ["a", "b"]) {
      const channel = here.socket.channel(name, { token: () => "T", since: "P", presence: name === "a" });
      channel.presence.on("sync", () => syncs++);
      channel.on("message", () => messages++);
    }
    here.socket.on("message", () => messages++);
    here.socket.request("x").catch(() => {});
    here.server.ready();
  };
  fresh();
  for (let n = 0; n < FRAMES; n++) {
    if (n % 500 === 0 || here.socket.state === "closed") {
      await settled();
      fresh();
    }
    here.server.receive(frame());
    if (n % 20 === 0) {
      here.clock.advance(Math.floor(random() * 3000));
      if (here.server.readyState === 0) here.server.ready();
      await null;
    }
    if (random() < 0.001) here.server.end(pick([1000, 1006, 1012, 4401]));
    sent += here.server.take().length;
    assert.ok(here.clock.timers.size < 20, "timers pile up");
    here.events.length = 0;
  }
  assert.ok(messages > FRAMES / 100, "the fuzz does not reach the listeners");
  assert.ok(syncs > FRAMES / 1000, "the fuzz does not reach presence");
  assert.ok(sent < FRAMES, `${sent} frames were sent`);
  assert.equal({}.x, undefined);
  assert.equal(Object.keys(Object.prototype).length, 0);
});
