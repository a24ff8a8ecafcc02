/** The states of a socket, and what it does after each end of a connection. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FINAL, OTHERS, RECONNECTIONS } from "../src/close_codes.js";
import { settled, world } from "./world.js";

const APPLICATION = 3000;

test("a socket connects, and tells its states", () => {
  const { socket, server, events } = world();
  assert.equal(socket.state, "connecting");
  assert.deepEqual(server.protocols, ["django-sockets.v1"]);
  assert.equal(server.url, "wss://example.com/ws/");
  server.accept();
  assert.equal(socket.state, "connecting", "the application is not ready");
  assert.equal(socket.session, "8f14e45fceea167a");
  server.receive({ ready: {} });
  assert.equal(socket.state, "connected");
  assert.deepEqual(events, [["state", "connected", { state: "connected" }]]);
});

for (const [given, expected] of [
  ["/ws/", "wss://example.com/ws/"],
  ["ws/?a=1#part", "wss://example.com/page/ws/?a=1"],
  ["http://other.example:8000/ws/", "ws://other.example:8000/ws/"],
  ["ws://other.example/", "ws://other.example/"],
  [new URL("https://other.example/x"), "wss://other.example/x"],
]) {
  test(`the address ${given}`, () => assert.equal(world({ url: given }).server.url, expected));
}

for (const wrong of ["ftp://example.com/", "wss://", "javascript:alert(1)"]) {
  test(`the address ${wrong} is refused at once`, () => {
    assert.throws(() => world({ url: wrong }), TypeError);
  });
}

test("the token is offered as a protocol, and not in the address", () => {
  const { server } = world({ token: "secret" });
  assert.deepEqual(server.protocols, ["django-sockets.v1", "django-sockets.token", "secret"]);
  assert.ok(!server.url.includes("secret"));
});

// Every code of the table, and those that are in none, before and after hello, with and without bye.
const CODES = [
  ...Object.keys(RECONNECTIONS).map(Number), ...FINAL, 1002, 1003, 1015, 3000, 3999, 4000, 4100, 4403, 4499, 4999,
];
for (const hello of [false, true]) {
  for (const code of CODES) {
    test(`a close with ${code} ${hello ? "after" : "before"} hello`, () => {
      const here = world({ random: 0.999999 });
      if (hello) here.server.ready();
      here.server.end(code);
      const { status } = here.socket;
      assert.equal(status.code, code);
      const isFinal =
        FINAL.includes(code) ||
        (code >= APPLICATION && !RECONNECTIONS[code]) ||
        (code === 4401 && !hello);
      if (isFinal) {
        assert.equal(status.state, "closed");
        here.clock.advance(3600_000);
        assert.equal(here.opened.length, 1, "it must not connect again");
        return;
      }
      assert.equal(status.state, "waiting");
      const [lowest, highest] = RECONNECTIONS[code] ?? OTHERS;
      const delay = status.retryAt - here.clock.now;
      assert.ok(delay <= highest * 1000 && delay > highest * 999, `${delay}`);
      here.clock.advance(lowest * 1000);
      assert.equal(here.opened.length, 1, "it must not connect earlier");
      here.clock.advance(highest * 1000);
      assert.equal(here.opened.length, 2);
    });
  }
}

for (const code of [1007, 1011, 1012, 1013]) {
  test(`a close with ${code + 2000}, as daphne sends it, means ${code}`, () => {
    const { socket, server } = world();
    server.ready();
    server.end(code + 2000);
    assert.equal(socket.status.code, code);
    assert.equal(socket.state, FINAL.includes(code) ? "closed" : "waiting");
  });
}

test("the reasons tell a refusal from a server that cannot be reached", () => {
  const reason = (play) => {
    const { socket, server, clock } = world();
    play(server, clock);
    return socket.status.reason;
  };
  assert.equal(reason((server) => server.end(1006)), "unreachable");
  assert.equal(reason((server) => server.open().end(1006)), "unreachable");
  assert.equal(reason((server) => server.ready().end(1006)), "lost");
  assert.equal(reason((server) => server.ready().end(1005)), "lost");
  assert.equal(reason((server) => server.open().end(4401)), "refused");
  assert.equal(reason((server) => server.open().end(4403)), "refused");
  const bye = { bye: { code: 4403, again: false } };
  assert.equal(reason((server) => server.open().receive(bye).end(1006)), "refused");
  assert.equal(reason((server) => server.ready().end(1012)), "server");
  assert.equal(reason((server) => server.ready().end(1000)), "server");
  assert.equal(reason((server) => server.ready().end(4401)), "server");
  assert.equal(reason((server, clock) => (server.open(), clock.advance(10_000))), "unreachable");
});

test("bye decides, whatever the close code is", () => {
  for (const [bye, code, state, delay] of [
    [{ code: 1000, again: true, after: [3, 3] }, 1000, "waiting", 3000],
    [{ code: 1012, again: false }, 1012, "closed"],
    [{ code: 4100, again: true, after: [7, 7] }, 1006, "waiting", 7000],
    [{ code: 4403, again: true, after: [1, 1] }, 4403, "waiting", 1000],
    [{ code: 1013, again: true }, 1013, "waiting", 7500],
    [{ code: 4100, again: true }, 4100, "waiting", 3000],
    [{ code: 1012 }, 1006, "waiting", 2500],
    [{}, 1012, "waiting", 2500],
    ...["x", [], [-1, 5], [5, 1], [0, 1e9], ["a", "b"], [NaN, null], null, {}].map((after) => [
      { code: 1012, again: true, after }, 1012, "waiting", 2500,
    ]),
  ]) {
    const { socket, server, clock } = world();
    server.ready().receive({ bye });
    server.end(code);
    assert.equal(socket.state, state, JSON.stringify(bye));
    assert.equal(socket.status.code, bye.code ?? code);
    if (delay) assert.equal(socket.status.retryAt - clock.now, delay, JSON.stringify(bye));
  }
});

test("after bye the client sends nothing, and closes itself after 5 s", () => {
  const { socket, server, clock } = world();
  server.ready({ pong: true }).receive({ bye: { code: 1012, again: true, after: [0, 5] } });
  server.take();
  socket.send("hello");
  server.receive({ ping: 1 }).receive({ data: 1 });
  assert.deepEqual(server.take(), []);
  clock.advance(4999);
  assert.equal(socket.state, "connected");
  clock.advance(1);
  assert.equal(server.closed, 1000);
  assert.deepEqual([socket.state, socket.status.code], ["waiting", 1012]);
});

test("failures back off with full jitter, up to 30 s, and begin again after a stable connection", () => {
  const here = world({ random: 0.999999 });
  const delays = [];
  for (let attempt = 0; attempt < 8; attempt++) {
    here.server.end(1006);
    delays.push(Math.round((here.socket.status.retryAt - here.clock.now) / 1000));
    here.clock.advance(here.socket.status.retryAt - here.clock.now);
  }
  assert.deepEqual(delays, [1, 2, 4, 8, 16, 30, 30, 30]);
  // A server that accepts and fails at once gets no rest from that.
  here.server.ready();
  here.clock.advance(9000);
  here.server.end(1006);
  assert.equal(Math.round((here.socket.status.retryAt - here.clock.now) / 1000), 30);
  here.clock.advance(31_000);
  here.server.ready();
  here.clock.advance(10_000);
  here.server.end(1006);
  assert.equal(Math.round((here.socket.status.retryAt - here.clock.now) / 1000), 1);
  here.random = 0;
  here.clock.advance(2000);
  here.server.end(1006);
  assert.equal(here.socket.status.retryAt, here.clock.now, "jitter is full: the delay may be 0");
});

/** The delays in seconds, rounded, after each of these ends of connections that were ready. */
const delaysAfter = (here, ...ends) =>
  ends.map((end) => {
    const { server, clock, socket } = here;
    server.ready();
    if (typeof end === "object") server.receive({ bye: end });
    server.end(end.code ?? end);
    const ms = socket.status.retryAt - clock.now;
    clock.advance(ms);
    return Math.round(ms / 1000);
  });

for (const code of [1012, 3012]) {
  test(`restarts in a row are no failures: the delay stays below 5 s after ${code}`, () => {
    const here = world({ random: 0.999999 });
    assert.deepEqual(delaysAfter(here, ...Array(8).fill(code)), Array(8).fill(5));
    assert.deepEqual(delaysAfter(here, 1006), [1], "the first failure after restarts");
  });
}

test("a restart before hello is no failure either", () => {
  const here = world({ random: 0.999999 });
  for (let attempt = 0; attempt < 8; attempt++) {
    here.server.open().end(1012);
    const ms = here.socket.status.retryAt - here.clock.now;
    assert.equal(Math.round(ms / 1000), 5);
    here.clock.advance(ms);
  }
});

test("the server bounds the delay after a restart; a loop of restarts is slowed down to 5 s", () => {
  const bye = (...after) => ({ code: 1012, again: true, after });
  const here = world({ random: 0.999999 });
  assert.deepEqual(delaysAfter(here, ...Array(6).fill(bye(0, 1))), [1, 2, 4, 5, 5, 5]);
  here.server.ready();
  here.clock.advance(10_000);
  const atOnce = Array(5).fill(bye(0, 0));
  assert.deepEqual(delaysAfter(here, ...atOnce), [0, 2, 4, 5, 5], "a stable connection ends the series");
  here.server.end(1006);
  here.socket.reconnect();
  assert.deepEqual(delaysAfter(here, ...atOnce), [0, 2, 4, 5, 5], "so does the page");
  assert.deepEqual(delaysAfter(here, bye(20, 60), bye(20, 60)), [60, 60], "a longer delay is obeyed");
  here.random = 0;
  assert.deepEqual(delaysAfter(here, bye(0, 5), bye(2, 5)), [0, 2], "jitter is full");
});

test("a restart ends a series of failures, and other codes back off as before", () => {
  const here = world({ random: 0.999999 });
  assert.deepEqual(delaysAfter(here, 1006, 1006, 1006, 1006), [1, 2, 4, 8]);
  assert.deepEqual(delaysAfter(here, 1012, 1006, 1006), [5, 1, 2]);
  const failed = { code: 1011, again: true, after: [0, 1] };
  assert.deepEqual(delaysAfter(here, failed, failed, failed, failed), [4, 8, 16, 30]);
});

test("hello is waited for, for 10 s", () => {
  const { socket, server, clock } = world();
  clock.advance(9000); // The handshake may take as long.
  server.open();
  clock.advance(9999);
  assert.equal(socket.state, "connecting");
  clock.advance(1);
  assert.equal(socket.state, "waiting");
  assert.equal(server.closed, 1000);
});

test("a handshake that nobody answers ends after 10 s", () => {
  const { socket, server, clock } = world();
  clock.advance(10_000);
  assert.deepEqual([socket.state, server.closed], ["waiting", 1000]);
});

test("a late frame of an old connection has no effect", () => {
  const here = world();
  const old = here.server.ready();
  const { onmessage, onclose } = old;
  old.end(1006);
  here.clock.advance(1000);
  here.server.ready();
  here.events.length = 0;
  onmessage({ data: '{"data":1}' });
  onclose({ code: 1000 });
  assert.equal(here.socket.state, "connected");
});

test("after close the client does not connect again, from every state, until reconnect", () => {
  const states = {
    connecting: () => {},
    connected: ({ server }) => server.ready(),
    waiting: ({ server }) => server.end(1006),
  };
  for (const [state, prepare] of Object.entries(states)) {
    const here = world();
    prepare(here);
    assert.equal(here.socket.state, state);
    here.socket.close();
    here.socket.close();
    assert.deepEqual(here.socket.status, { state: "closed", reason: "client" });
    assert.equal(here.clock.timers.size, 0, "no timer is left");
    here.page.fire("online");
    here.page.fire("pageshow");
    here.page.show("visible");
    assert.equal(here.opened.length, 1);
    here.socket.reconnect();
    here.server.ready();
    assert.equal(here.socket.state, "connected");
    here.page.fire("pagehide");
    assert.equal(here.socket.state, "waiting", "the events of the page are observed again");
  }
});

test("reconnect connects at once after a refusal, and does nothing while connected", () => {
  const here = world();
  here.server.open().end(4401);
  assert.equal(here.socket.state, "closed");
  here.socket.reconnect();
  here.server.ready();
  here.socket.reconnect();
  assert.equal(here.opened.length, 2);
  here.server.end(1013);
  here.socket.reconnect();
  assert.equal(here.opened.length, 3);
});

test("a listener may close the socket in any state", () => {
  for (const state of ["connected", "waiting", "connecting"]) {
    const here = world();
    here.socket.on("state", (now) => now === state && here.socket.close());
    here.server.ready();
    if (here.socket.state !== "closed") here.server.end(1006);
    here.clock.advance(60_000);
    assert.equal(here.socket.state, "closed", state);
    assert.equal(here.opened.length, 1);
    assert.equal(here.clock.timers.size, 0);
  }
});

test("an error of a listener does not break the others", (context) => {
  const told = context.mock.method(console, "error", () => {});
  const here = world();
  const got = [];
  here.socket.on("message", () => {
    throw new Error("of the first listener");
  });
  here.socket.on("message", (data) => got.push(data));
  here.server.ready().receive({ data: 1 }).receive({ data: 2 });
  assert.deepEqual(got, [1, 2]);
  assert.equal(told.mock.callCount(), 2);
});

test("a listener can be removed, also by another one", () => {
  const here = world();
  const got = [];
  here.socket.on("message", () => off());
  const off = here.socket.on("message", (data) => got.push(data));
  here.server.ready().receive({ data: 1 });
  assert.deepEqual(got, []);
  assert.throws(() => here.socket.on("mesage", () => {}), /no event "mesage": use state, message/);
  assert.throws(() => here.socket.on("message"), TypeError);
});

test("a new token and a new address for each attempt", async () => {
  let asked = 0;
  const here = world({
    url: async () => `/ws/?n=${asked}`,
    token: async () => `key-${++asked}`,
  });
  assert.equal(here.opened.length, 0);
  await settled();
  assert.equal(here.server.protocols[2], "key-1");
  here.server.ready().end(1006);
  here.clock.advance(1000);
  await settled();
  assert.equal(here.server.protocols[2], "key-2");
  assert.match(here.server.url, /^wss:\/\/example\.com\/ws\/\?n=\d$/);
});

test("a token that was refused is asked for once more", async () => {
  const here = world({ token: () => "expired" });
  await settled();
  here.server.open().receive({ bye: { code: 4401, again: false } });
  here.server.end(4401);
  assert.equal(here.socket.state, "waiting");
  here.clock.advance(1000);
  await settled();
  assert.equal(here.opened.length, 2);
  here.server.open().end(4401);
  assert.deepEqual([here.socket.state, here.socket.status.reason], ["closed", "refused"]);
});

test("a token function that fails is called again later; null ends the socket", async () => {
  let answer = () => Promise.reject(new Error("no network"));
  const here = world({ token: () => answer() });
  await settled();
  assert.deepEqual([here.socket.state, here.socket.status.reason], ["waiting", "token"]);
  answer = () => null;
  here.clock.advance(1000);
  await settled();
  assert.deepEqual([here.socket.state, here.socket.status.reason], ["closed", "token"]);
  assert.equal(here.opened.length, 0);
});

test("a token function that never answers is given up after 10 s", async () => {
  let resolve;
  const here = world({ token: () => new Promise((done) => (resolve = done)) });
  here.clock.advance(10_000);
  assert.equal(here.socket.state, "waiting");
  resolve("late");
  await settled();
  assert.equal(here.opened.length, 0, "the answer of an old attempt has no effect");
  here.clock.advance(1000);
  resolve("in time");
  await settled();
  assert.equal(here.server.protocols[2], "in time");
});

test("a listener may reconnect while the socket begins to wait", async () => {
  let asked = 0;
  const here = world({ token: () => (asked++ ? "key" : new Promise(() => {})) });
  here.socket.on("state", (state) => state === "waiting" && here.socket.reconnect());
  here.clock.advance(10_000);
  await settled();
  here.server.ready();
  assert.equal(here.socket.state, "connected");
  here.server.end(1006);
  await settled();
  assert.equal(here.opened.length, 2, "the end of the new connection is handled");
});

test("close while a token is fetched", async () => {
  const here = world({ token: async () => "key" });
  here.socket.close();
  await settled();
  assert.equal(here.opened.length, 0);
});

test("a token that no protocol can be is told without the token", async () => {
  const here = world({ token: async () => "secret" });
  here.env.WebSocket = class {
    constructor() {
      throw new SyntaxError("The subprotocol 'secret' is invalid.");
    }
  };
  await settled();
  assert.deepEqual([here.socket.state, here.socket.status.reason], ["closed", "token"]);
  assert.ok(!JSON.stringify(here.events).includes("secret"));
});

test("malformed frames are told, and the connection goes on", () => {
  const here = world();
  here.server.ready();
  here.events.length = 0;
  for (const raw of ["{", "[]", "null", "1", '"x"', "", new ArrayBuffer(0), new ArrayBuffer(2)]) {
    here.server.receive(raw);
  }
  assert.deepEqual(new Set(here.events.map(([name, error]) => `${name} ${error.code}`)), new Set(["error invalid_frame"]));
  assert.equal(here.events.length, 8);
  assert.equal(here.socket.state, "connected");
});

test("after a reconnect, a gap for what the server sends by itself", () => {
  const here = world();
  here.server.ready().receive({ channel: "news", data: 1, position: "P1" });
  here.server.end(1006);
  here.clock.advance(1000);
  here.events.length = 0;
  here.server.accept().receive({ data: "of connect" });
  here.server.receive({ ready: {} });
  assert.deepEqual(
    here.events.filter(([name]) => name !== "state"),
    [["message", "of connect", {}], ["gap", { channels: ["news"], reason: "reconnect" }]],
  );
  here.server.receive({ gap: ["news"], reason: "late" });
  assert.deepEqual(here.events.at(-1), ["gap", { channels: ["news"], reason: "late" }]);
});
