/** Server-sent events: positions, gaps, and what the browser does not do by itself. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { events } from "../src/events.js";

const URL_ = "https://example.com/events/?channel=a";

function stream(context, options = {}) {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const opened = [];
  class EventSource {
    readyState = 0;

    constructor(url, given) {
      Object.assign(this, { url, given });
      opened.push(this);
    }

    close() {
      this.readyState = 2;
    }
  }
  const source = events(URL_, { EventSource, ...options });
  const seen = [];
  for (const name of ["message", "gap", "state"]) {
    source.on(name, (...values) => seen.push([name, ...values]));
  }
  return { source, opened, seen, tick: (ms) => context.mock.timers.tick(ms) };
}

const send = (server, frame, lastEventId = "") =>
  server.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame), lastEventId });

test("messages, positions and gaps", (context) => {
  const { source, opened, seen } = stream(context);
  const [server] = opened;
  assert.equal(server.url, URL_);
  server.onopen();
  send(server, { channel: "a", data: { n: 1 }, position: "P1" }, "P1");
  assert.equal(source.position, "P1");
  send(server, { gap: ["a"], reason: "overflow" }, "P1");
  send(server, { channel: "a", data: null }, "P2");
  assert.deepEqual(seen, [
    ["state", "connected"],
    ["message", { n: 1 }, { channel: "a", position: "P1" }],
    ["gap", { channels: ["a"], reason: "overflow" }],
    ["message", null, { channel: "a", position: "P2" }],
  ]);
});

test("bytes come as base64 and are handed out as bytes", (context) => {
  const { opened, seen } = stream(context);
  send(opened[0], { channel: "a", data: "AP8=", base64: true }, "P1");
  send(opened[0], { channel: "a", data: "AP8=" }, "P2");
  send(opened[0], { channel: "a", data: "%", base64: true }, "P3");
  assert.deepEqual(seen, [
    ["message", Uint8Array.of(0, 255), { channel: "a", position: "P1" }],
    ["message", "AP8=", { channel: "a", position: "P2" }],
  ]);
});

test("frames that make no sense are ignored", (context) => {
  const { opened, seen } = stream(context);
  for (const frame of ["", "{", "[]", "null", { gap: 5 }, { other: 1 }]) send(opened[0], frame);
  assert.deepEqual(seen, []);
});

test("the browser connects again by itself; after an HTTP error the client does, from its position", (context) => {
  const { opened, seen, tick } = stream(context, { since: "P0", withCredentials: true });
  assert.equal(opened[0].url, `${URL_}&last_event_id=P0`);
  assert.deepEqual(opened[0].given, { withCredentials: true });
  opened[0].onopen();
  send(opened[0], { channel: "a", data: 1 }, "P/1");
  opened[0].onerror();
  tick(60_000);
  assert.equal(opened.length, 1);
  opened[0].readyState = 2;
  opened[0].onerror();
  tick(1000);
  assert.equal(opened[1].url, `${URL_}&last_event_id=P%2F1`);
  assert.deepEqual(seen.filter(([name]) => name === "state").map(([, state]) => state), [
    "connected", "connecting", "waiting",
  ]);
});

test("close ends it, also while it waits", (context) => {
  const { source, opened, tick } = stream(context);
  opened[0].readyState = 2;
  opened[0].onerror();
  source.close();
  tick(60_000);
  assert.deepEqual([source.state, opened.length], ["closed", 1]);
});

test("what is missing is told at once", () => {
  assert.throws(() => events(URL_, { EventSource: null }), /no EventSource/);
  assert.throws(() => events("/relative/", { EventSource: class {} }), TypeError);
});
