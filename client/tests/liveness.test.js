/** A dead connection is noticed, and a page that slept is not mistaken for one. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { world } from "./world.js";

function connected(options) {
  const here = world(options);
  here.server.ready();
  here.server.take();
  return here;
}

test("a silent server is pinged after ping + 10 s, and left 5 s later", () => {
  const { socket, server, clock } = connected();
  clock.advance(34_999);
  assert.deepEqual(server.take(), []);
  clock.advance(1);
  assert.deepEqual(server.take(), [{ ping: 1 }]);
  clock.advance(4999);
  assert.equal(socket.state, "connected");
  clock.advance(1);
  assert.deepEqual([socket.state, socket.status.reason], ["waiting", "lost"]);
  assert.equal(server.closed, 1000);
});

test("any frame proves life, also during the wait", () => {
  const { socket, server, clock } = connected();
  clock.advance(1000);
  for (const frame of [{ pong: 1 }, { data: 1 }, { ping: 1 }, { unknown: 1 }, "{"]) {
    clock.advance(34_000);
    assert.equal(server.take().length, 1);
    clock.advance(4999);
    server.receive(frame);
    clock.advance(1000);
    assert.equal(socket.state, "connected");
  }
  clock.advance(34_000);
  assert.equal(server.take().length, 1, "the wait begins again");
});

test("a server that pings is left alone, however often it sends", () => {
  const { socket, server, clock } = connected();
  for (let second = 0; second < 600; second++) {
    clock.advance(1000);
    server.receive(second % 25 ? { data: second } : { ping: second });
    assert.ok(clock.timers.size <= 2);
  }
  assert.deepEqual(server.take(), []);
  assert.equal(socket.state, "connected");
});

test("a link that is cut after a message is noticed within 40 s", () => {
  for (let quiet = 0; quiet < 25; quiet += 0.7) {
    const { socket, server, clock } = connected();
    for (let sent = 0; sent < 20; sent++) {
      clock.advance(1300);
      server.receive({ data: sent });
    }
    clock.advance(quiet * 1000);
    server.receive({ ping: 1 });
    clock.advance(39_999);
    assert.equal(socket.state, "connected");
    clock.advance(1);
    assert.equal(socket.state, "waiting");
  }
});

test("pings of the server are answered if hello asks for it, and only then", () => {
  for (const pong of [true, false]) {
    const here = world();
    here.server.ready({ pong });
    here.server.receive({ ping: 7 });
    assert.deepEqual(here.server.take(), pong ? [{ pong: 7 }] : []);
  }
});

test("the interval of hello counts; one that is not valid does not", () => {
  for (const [ping, seconds] of [[5, 15], [0.5, 10.5], [0, 35], [-1, 35], ["x", 35], [null, 35]]) {
    const here = world();
    here.server.ready({ ping });
    here.clock.advance(seconds * 1000 - 1);
    assert.deepEqual(here.server.take(), []);
    here.clock.advance(1);
    assert.equal(here.server.take().length, 1);
  }
});

for (const [what, wake] of [
  ["the page is shown", (page) => page.show("visible")],
  ["the page is resumed", (page) => page.document.dispatchEvent(new Event("resume"))],
  ["the network is back", (page) => page.fire("online")],
]) {
  test(`${what}: a ping, and 5 s`, () => {
    const { socket, server, clock, page } = connected();
    clock.advance(10_000);
    wake(page);
    assert.deepEqual(server.take(), [{ ping: 1 }]);
    clock.advance(4999);
    assert.equal(socket.state, "connected");
    clock.advance(1);
    assert.equal(socket.state, "waiting");
  });

  test(`${what}: a wait for the next attempt ends, if the server has not asked for it`, () => {
    for (const [code, opened] of [[1006, 2], [1012, 1], [1013, 1]]) {
      const here = connected();
      here.server.end(code);
      wake(here.page);
      assert.equal(here.opened.length, opened, `${code}`);
    }
  });
}

test("a hidden page does not check", () => {
  const { server, page } = connected();
  page.show("hidden");
  assert.deepEqual(server.take(), []);
});

test("many wake-ups do not put off the end of a dead connection", () => {
  const { socket, clock, page } = connected();
  for (let second = 0; second < 5; second++) {
    page.show("visible");
    clock.advance(1000);
  }
  assert.equal(socket.state, "waiting");
});

test("a frozen page: what has arrived meanwhile is read before the connection counts as dead", () => {
  for (const frozen of [60_000, 600_000, 36_000]) {
    const { socket, server, clock, page } = connected();
    clock.advance(20_000);
    clock.sleep(frozen);
    // The browser tells of the end, runs the overdue timers, and then hands out the messages.
    page.document.dispatchEvent(new Event("resume"));
    clock.wake();
    assert.equal(socket.state, "connected");
    clock.advance(1000);
    server.receive({ ping: 1 });
    clock.advance(20_000);
    assert.equal(socket.state, "connected");
  }
});

test("a page that is frozen during the wait for the pong gets another one", () => {
  const { socket, server, clock } = connected();
  clock.advance(36_000);
  assert.equal(server.take().length, 1);
  clock.sleep(60_000);
  clock.wake();
  assert.equal(socket.state, "connected", "the overdue timer is no proof");
  assert.deepEqual(server.take(), [{ ping: 2 }]);
  clock.advance(4999);
  assert.equal(socket.state, "connected");
  clock.advance(1);
  assert.equal(socket.state, "waiting", "but 5 s on an awake page are");
});

test("a page that is frozen during the handshake gets more time", () => {
  const { socket, server, clock } = world();
  clock.sleep(60_000);
  clock.wake();
  assert.equal(socket.state, "connecting");
  server.ready();
  clock.advance(5000);
  assert.equal(socket.state, "connected");
});

test("a clock that is set back or forward kills no connection, and hides no dead one", () => {
  const back = connected();
  back.clock.advance(20_000);
  back.clock.now -= 3600_000;
  for (const timer of back.clock.timers) timer.due -= 3600_000;
  back.clock.advance(40_000);
  assert.equal(back.opened[0].closed, 1000);
  const forward = connected();
  forward.clock.now += 3600_000;
  for (const timer of forward.clock.timers) timer.due += 3600_000;
  forward.server.receive({ ping: 1 });
  forward.clock.advance(30_000);
  assert.equal(forward.socket.state, "connected");
});

test("a hidden page notices a dead link within 100 s, with its timers a minute apart", () => {
  // Chromium delays chained timers of hidden pages to whole minutes; others run within a second.
  for (let offset = 0; offset < 60; offset += 7) {
    const here = connected();
    const { clock } = here;
    let depth = 0;
    const timer = here.env.timer;
    here.env.timer = (ms, callback) => {
      const mine = depth + 1;
      const step = mine >= 5 ? 60_000 : 1000;
      const due = Math.ceil((clock.now + ms) / step) * step;
      return timer(due - clock.now, () => {
        depth = mine;
        callback();
        depth = 0;
      });
    };
    for (let second = 0; second < 600; second += 25) {
      clock.advance(25_000);
      here.server.receive({ ping: second });
    }
    clock.advance(offset * 1000);
    here.server.receive({ ping: 0 });
    clock.advance(100_000);
    assert.equal(here.opened[0].closed, 1000);
  }
});
