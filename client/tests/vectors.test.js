/** The conversations of tests/client/vectors.json, from the side of the client. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { CHANNEL_EVENTS, record, settled, world } from "./world.js";

const file = new URL("../../tests/client/vectors.json", import.meta.url);
const { conversations } = JSON.parse(await readFile(file, "utf8"));

/** This client does not hold these conversations. */
const NOT_HELD = {
  "the client subscribes before hello": "it knows the limits of the server only after hello",
  "channel names that are not valid": "it refuses an empty name itself",
};

const isForClient = ({ sides = ["client"], name }) => sides.includes("client") && !NOT_HELD[name];

/** What a page calls so that the client sends a frame. */
class Caller {
  channels = new Map();
  /** Every event, as the page has seen it. */
  events = [];
  /** The `id` of the vectors -> that of this client. */
  ids = new Map();
  replies = new Map();
  /** The members of each channel by the frames of the server, and the parts of a list. */
  members = new Map();
  parts = {};

  constructor(here, conversation) {
    this.here = here;
    this.tokens = Object.keys(conversation.tokens ?? {});
    /** The tokens that the client sends in this conversation. */
    this.sent = conversation.steps.flatMap(({ from, frame }) =>
      from === "client" ? [...(frame?.subscribe ?? []), ...(frame?.renew ?? [])].map(({ token }) => token) : [],
    );
  }

  act(frame) {
    const { socket } = this.here;
    if (frame.subscribe) for (const entry of frame.subscribe) this.subscribe(entry);
    else if (frame.unsubscribe) for (const name of frame.unsubscribe) this.channels.get(name).close();
    else if (frame.message) {
      const { type, ...data } = frame.message;
      if (frame.id === undefined) socket.send(type, data);
      else {
        const reply = socket.request(type, data).then((ok) => ({ ok }), (error) => ({ error }));
        this.replies.set(frame.id, reply);
      }
    }
    // Pings, pongs and renewals are its own business.
  }

  subscribe({ channel = "order:7", ...options }) {
    if (this.channels.has(channel) && !options.presence) return;
    const next = this.tokens[this.tokens.indexOf(options.token) + 1];
    if (next && this.sent.includes(next)) options.renew = () => next;
    const made = this.here.socket.channel(channel, options);
    record(this.events, made, CHANNEL_EVENTS);
    this.channels.set(channel, made);
  }

  /** The list that a page must see after a frame with presence. */
  expectMembers({ channel, sync, more, joined, left, updated }) {
    if (sync) {
      Object.assign(this.parts, sync);
      if (more) return;
      this.members.set(channel, this.parts);
      this.parts = {};
    } else {
      const members = this.members.get(channel);
      Object.assign(members, joined, updated);
      for (const key of Object.keys(left)) delete members[key];
    }
    const list = Object.fromEntries(this.channels.get(channel).presence.list());
    assert.deepEqual(list, this.members.get(channel));
  }

  /** The frame that the client has sent must be the one of the vectors. */
  compare(sent, frame) {
    assert.ok(sent, `no frame was sent; expected ${JSON.stringify(frame)}`);
    if (frame.id !== undefined) this.ids.set(frame.id, sent.id);
    const expected = structuredClone(frame);
    if (frame.id !== undefined) expected.id = sent.id;
    for (const entry of expected.subscribe ?? []) entry.channel ??= "order:7";
    assert.deepEqual(sent, expected);
  }
}

function bytes({ header, hex }) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const frame = new Uint8Array(2 + text.length + hex.length / 2);
  new DataView(frame.buffer).setUint16(0, text.length);
  frame.set(text, 2);
  frame.set(Buffer.from(hex, "hex"), 2 + text.length);
  return frame.buffer;
}

/** What the page must see of a frame of the server. */
async function check(caller, here, frame, seen) {
  const { status } = here.socket;
  const event = seen.at(-1);
  if (frame.ready) assert.equal(status.state, "connected");
  else if ("data" in frame) {
    const info = frame.channel && { channel: frame.channel, position: frame.position };
    assert.deepEqual(event, ["message", frame.data, info ?? {}]);
  } else if (frame.gap) assert.deepEqual(event, ["gap", { channels: frame.gap, reason: frame.reason }]);
  else if (frame.unsubscribed && !frame.again) assert.equal(event[1].code, frame.code);
  else if (caller.replies.has(frame.id)) {
    const { ok, error } = await caller.replies.get(frame.id);
    if ("ok" in frame) assert.deepEqual(ok, frame.ok);
    else {
      const { code, message, temporary, after } = error;
      assert.deepEqual({ code, message, temporary, after }, { after: undefined, ...frame.error });
    }
  } else if (frame.error) assert.deepEqual(event, ["error", frame.error]);
  if (frame.presence) caller.expectMembers(frame.presence);
  for (const { channel, error, recovered, presence } of frame.ok?.channels ?? []) {
    const use = caller.channels.get(channel);
    if (!use) continue;
    assert.equal(use.state, error ? "refused" : "subscribed");
    if (presence) caller.expectMembers({ channel, sync: presence });
    if (recovered === false) assert.deepEqual(event, ["gap", { channels: [channel], reason: "resume" }]);
  }
}

for (const conversation of conversations.filter(isForClient)) {
  test(conversation.name, async () => {
    const here = world({ random: 0.999 });
    here.server.open();
    const caller = new Caller(here, conversation);
    record(caller.events, here.socket, ["message", "gap", "error"]);
    const { steps } = conversation;
    let byes = 0;
    for (const [index, step] of steps.entries()) {
      if (step.advance_seconds) here.clock.advance(step.advance_seconds * 1000);
      else if (step.from === "client") {
        // Frames that follow each other are of one call, as far as the client puts them together.
        if (step.frame) caller.act(step.frame);
        await settled();
        if ("close" in step) assert.notEqual(here.server.closed, undefined);
        else caller.compare(here.server.sent.shift(), step.frame);
      } else if (step.from === "server") {
        const before = caller.events.length;
        if ("close" in step) here.server.end(step.close);
        else if (step.binary) here.server.receive(bytes(step.binary));
        else {
          const frame = structuredClone(step.frame);
          if (caller.ids.has(frame.id)) frame.id = caller.ids.get(frame.id);
          here.server.receive(frame);
          byes += "bye" in frame;
        }
        await settled();
        const seen = caller.events.slice(before);
        if (step.frame) await check(caller, here, step.frame, seen);
        if (step.binary) {
          const { channel } = step.binary.header;
          const info = channel ? { channel, position: undefined } : {};
          assert.deepEqual(seen, [["message", Uint8Array.from(Buffer.from(step.binary.hex, "hex")), info]]);
        }
        if ("close" in step) {
          const { bye } = steps[index - 1].frame;
          const { state, code } = here.socket.status;
          assert.deepEqual([state, code], [bye.again ? "waiting" : "closed", bye.code]);
        }
      }
    }
    assert.deepEqual(here.server.sent, [], "the client has sent more");
  });
}

test("every exception is still a conversation", () => {
  const names = conversations.map(({ name }) => name);
  for (const name of Object.keys(NOT_HELD)) assert.ok(names.includes(name), name);
});
