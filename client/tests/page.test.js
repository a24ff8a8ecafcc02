/** A page that is left, kept for the back button, and shown again. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { world } from "./world.js";

test("a page that is left closes its connection; the kept page connects again at once", () => {
  const here = world();
  here.server.ready();
  here.page.fire("pagehide");
  assert.equal(here.server.closed, 1000);
  assert.deepEqual(here.socket.status, { state: "waiting", reason: "page" });
  assert.equal(here.clock.timers.size, 0, "no timer keeps the page from the cache");
  here.clock.advance(3600_000);
  here.page.fire("online");
  assert.equal(here.opened.length, 1);
  here.page.fire("pageshow");
  assert.equal(here.opened.length, 2);
  here.server.ready();
  assert.equal(here.socket.state, "connected");
});

test("a page that is left while it waits or connects", () => {
  for (const prepare of [() => {}, ({ server }) => server.end(1006)]) {
    const here = world();
    prepare(here);
    here.page.fire("pagehide");
    here.clock.advance(60_000);
    assert.equal(here.opened.length, 1);
    here.page.fire("pageshow");
    assert.equal(here.opened.length, 2);
  }
});

test("the first pageshow of a page has no effect", () => {
  const here = world();
  here.page.fire("pageshow");
  here.server.ready();
  here.page.fire("pageshow");
  assert.equal(here.opened.length, 1);
});

test("requests in flight reject when the page is left, and those that wait are sent later", async () => {
  const here = world();
  here.server.ready();
  const sent = here.socket.request("a");
  here.page.fire("pagehide");
  await assert.rejects(sent, { code: "disconnected", temporary: true });
  here.page.fire("pageshow");
  const waits = here.socket.request("b");
  here.server.ready();
  const [frame] = here.server.take();
  assert.deepEqual(frame.message, { type: "b" });
  here.server.receive({ id: frame.id, ok: 1 });
  assert.equal(await waits, 1);
});

test("without a page, as in Node, nothing is observed; a worker observes the network", () => {
  const node = world({ page: null });
  node.server.ready();
  assert.equal(node.socket.state, "connected");
  const worker = world({ page: { window: new EventTarget() } });
  worker.server.ready();
  worker.server.take();
  worker.env.window.dispatchEvent(new Event("online"));
  assert.equal(worker.server.take().length, 1);
  worker.env.window.dispatchEvent(new Event("pagehide"));
  assert.equal(worker.socket.state, "connected");
});
