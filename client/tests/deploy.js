/**
 * Many clients of several servers, for tests/client/test_deploy.py: node deploy.js COUNT WATCHERS PORT...
 *
 * Each client is a member of its own. An attempt to connect goes to the next of the servers, as behind a
 * load balancer. Some of the clients also watch the members. Prints a JSON line when all are subscribed
 * for the first time. The input has JSON lines with the ports of the servers in turn from now on; each is
 * answered with what the watchers know and were told.
 */

import { createInterface } from "node:readline";

import WebSocket from "ws";

import { connect } from "../../django_sockets/static/django_sockets/client.js";

const [count, watching, ...first] = process.argv.slice(2).map(Number);
let ports = first;
let turn = 0;

class Balanced extends WebSocket {
  constructor(address, protocols) {
    const target = new URL(address);
    target.port = ports[turn++ % ports.length];
    const origin = target.origin.replace("ws", "http");
    super(target.href, protocols, { perMessageDeflate: false, origin });
  }
}

const say = (line) => console.log(JSON.stringify(line));
const watchers = [];
let subscribed = 0;
let connections = 0;
let longestMs = 0;

for (let number = 0; number < count; number++) {
  const socket = connect(`ws://127.0.0.1/ws/?user-${number}`, { WebSocket: Balanced });
  const presence = number < watching;
  const channel = socket.channel("room:1", { presence });
  let isNew = true;
  let awayAt;
  channel.on("state", (state) => {
    if (state !== "subscribed") {
      awayAt ??= performance.now();
      return;
    }
    if (!isNew) longestMs = Math.max(longestMs, performance.now() - awayAt);
    awayAt = undefined;
    connections++;
    subscribed += isNew;
    if (isNew && subscribed === count) say({ subscribed });
    isNew = false;
  });
  if (!presence) continue;
  const watcher = { channel, left: [] };
  channel.presence.on("leave", (key) => watcher.left.push(key));
  watchers.push(watcher);
}

createInterface({ input: process.stdin }).on("line", (line) => {
  ports = JSON.parse(line);
  const members = watchers.map(({ channel }) => channel.presence.list().size);
  say({ members, left: watchers.flatMap(({ left }) => left), connections, longest_ms: longestMs });
});
