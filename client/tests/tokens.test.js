/** Signed channels: renewal, expiry, refusal. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { CHANNEL_EVENTS, record, settled, world } from "./world.js";

async function subscribed(options, item = {}) {
  const here = world();
  here.server.ready();
  here.channel = here.socket.channel("a", options);
  here.log = record([], here.channel, CHANNEL_EVENTS);
  await settled();
  here.first = here.server.take()[0];
  here.answer = async (frame, entry) => {
    here.server.receive({ id: frame.id, ok: { channels: [{ channel: "a", ...entry }] } });
    await settled();
  };
  if (here.first && item) await here.answer(here.first, { expires_in: 600, recovered: true, ...item });
  return here;
}

const refused = (code) => ({ error: { code, message: "", temporary: false } });

test("a token is renewed at 80 % of its life, again and again", async () => {
  let made = 0;
  const here = await subscribed({ token: "T0", renew: async (name) => `${name}:T${++made}` });
  assert.deepEqual(here.first.subscribe, [{ channel: "a", token: "T0" }]);
  for (let round = 1; round < 4; round++) {
    for (let second = 0; second < 480; second += 20) {
      here.server.receive({ ping: 1 });
      await settled();
      assert.deepEqual(here.server.take(), []);
      here.clock.advance(20_000);
    }
    await settled();
    const [frame] = here.server.take();
    assert.deepEqual(frame.renew, [{ channel: "a", token: `a:T${round}` }]);
    await here.answer(frame, { expires_in: 600 });
  }
  assert.deepEqual(here.log, [["state", "subscribed"]]);
});

test("a renewal that fails is tried again before the end", async () => {
  let calls = 0;
  const here = await subscribed({
    token: "T0",
    renew: () => {
      if (++calls < 3) throw new Error("no network");
      return "T1";
    },
  });
  for (let second = 0; second < 600; second += 10) {
    here.clock.advance(10_000);
    here.server.receive({ ping: 1 });
    await settled();
  }
  assert.equal(calls, 3);
  assert.deepEqual(here.server.take()[0].renew, [{ channel: "a", token: "T1" }]);
});

test("a renewal that the server refuses is tried again with another token", async () => {
  let calls = 0;
  const here = await subscribed({ token: "T0", renew: () => `T${++calls}` });
  for (let second = 0; second < 580; second += 10) {
    here.clock.advance(10_000);
    here.server.receive({ ping: 1 });
    await settled();
    for (const frame of here.server.take()) await here.answer(frame, refused("token_foreign"));
  }
  assert.ok(calls >= 3 && calls < 12, `${calls}`);
  assert.equal(here.channel.state, "subscribed");
});

test("an expired subscription gets a new token and continues from its position", async () => {
  const here = await subscribed({ token: "T0", renew: () => "T1" }, { position: "P3" });
  here.server.receive({ unsubscribed: "a", code: "expired", again: true });
  await settled();
  const [frame] = here.server.take();
  assert.deepEqual(frame.subscribe, [{ channel: "a", token: "T1", since: "P3" }]);
  await here.answer(frame, { expires_in: 600, recovered: true });
  assert.deepEqual(here.log, [["state", "subscribed"], ["state", "pending"], ["state", "subscribed"]]);
});

test("without a way to a new token an expired subscription ends, and tells it", async () => {
  const here = await subscribed({ token: "T0" });
  here.server.receive({ unsubscribed: "a", code: "expired", again: true });
  await settled();
  assert.deepEqual(here.server.take(), []);
  assert.deepEqual(here.log.slice(1).map(([name, value]) => [name, value.code ?? value]), [
    ["state", "refused"],
    ["error", "expired"],
  ]);
  assert.equal(here.log.at(-1)[1].temporary, false);
});

for (const code of ["revoked", "removed"]) {
  test(`a subscription that was ${code} ends, whatever tokens there are`, async () => {
    const here = await subscribed({ token: "T0", renew: () => "T1" });
    here.server.receive({ unsubscribed: "a", code, again: false });
    here.server.receive({ channel: "a", data: 1 });
    here.clock.advance(3600_000);
    await settled();
    assert.equal(here.channel.state, "refused");
    assert.ok(!here.log.some(([name]) => name === "message"));
  });
}

test("a channel without a token that may come back does so", async () => {
  const here = await subscribed({});
  here.server.receive({ unsubscribed: "a", code: "new", again: true });
  here.clock.advance(1000);
  await settled();
  assert.deepEqual(here.server.take()[0].subscribe, [{ channel: "a" }]);
});

for (const code of ["token_invalid", "token_expired", "token_foreign"]) {
  test(`${code}: one new token is tried, then the channel is refused`, async () => {
    let calls = 0;
    const here = await subscribed({ token: () => `T${++calls}` }, null);
    assert.deepEqual(here.first.subscribe, [{ channel: "a", token: "T1" }]);
    await here.answer(here.first, refused(code));
    const [frame] = here.server.take();
    assert.deepEqual(frame.subscribe, [{ channel: "a", token: "T2" }]);
    await here.answer(frame, refused(code));
    assert.deepEqual(here.server.take(), []);
    assert.deepEqual([here.channel.state, here.log.at(-1)[1].code], ["refused", code]);
  });
}

test("a token that has expired while the connection was down is not sent", async () => {
  const here = await subscribed({ token: "T0", renew: async () => "T1" }, { position: "P" });
  here.socket.channel("b");
  await settled();
  await here.answer(here.server.take()[0], { channel: "b" });
  here.server.end(1006);
  here.clock.advance(1000);
  here.clock.sleep(700_000);
  here.server.accept();
  // The others do not wait for the new token.
  assert.deepEqual(here.server.take()[0].subscribe.map(({ channel }) => channel), ["b"]);
  await settled();
  assert.deepEqual(here.server.take()[0].subscribe, [{ channel: "a", token: "T1", since: "P" }]);
});

test("a token that is still valid is sent again without a new one", async () => {
  const here = await subscribed({ token: "T0", renew: () => assert.fail("no need") });
  here.server.end(1006);
  here.clock.advance(1000);
  here.server.accept();
  assert.deepEqual(here.server.take()[0].subscribe, [{ channel: "a", token: "T0" }]);
});

test("a function that has no token ends the channel; one that fails is called again later", async () => {
  let answer = () => Promise.reject(new Error("secret of the application"));
  const here = await subscribed({ token: () => answer() });
  assert.deepEqual(here.log, [
    ["error", { code: "unavailable", message: "no new token", temporary: true }],
  ]);
  answer = () => null;
  here.clock.advance(1000);
  await settled();
  assert.equal(here.channel.state, "refused");
  assert.deepEqual(here.server.take(), []);
});

test("a token that arrives after the channel was closed is not used", async () => {
  let resolve;
  const here = await subscribed({ token: () => new Promise((done) => (resolve = done)) });
  here.channel.close();
  resolve("T");
  await settled();
  assert.deepEqual(here.server.take(), []);
});

test("no timer is left after the channel was closed", async () => {
  const here = await subscribed({ token: "T0", renew: () => "T1" });
  const before = here.clock.timers.size;
  here.channel.close();
  assert.equal(here.clock.timers.size, before - 1);
});
