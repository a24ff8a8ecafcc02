/**
 * Many clients in one process, for tests/client/test_storm.py: node storm.js URL COUNT.
 *
 * Prints a JSON line when all are subscribed, each time, with the milliseconds from the end of the
 * first connection to each new subscription, and to each first attempt; and a last line when all have
 * shown the message with `last`.
 */

import WebSocket from "ws";

import { connect } from "../../django_sockets/static/django_sockets/client.js";

const [url, count] = [process.argv[2], Number(process.argv[3])];
const origin = new URL(url).origin.replace("ws", "http");

class Quick extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { perMessageDeflate: false, origin });
  }
}

let cut = Date.now();
let times = [];
let planned = [];
let ended = 0;
let whole = 0;
let gaps = 0;
const say = (line) => console.log(JSON.stringify(line));

for (let number = 0; number < count; number++) {
  const socket = connect(url, { WebSocket: Quick });
  const channel = socket.channel("kept:1");
  let last;
  let isCovered = true;
  let isWhole = true;
  channel.on("gap", () => {
    isCovered = true;
    gaps++;
  });
  channel.on("message", ({ n, last: isLast }) => {
    isWhole &&= last === undefined || n === last + 1 || (isCovered && n > last);
    last = n;
    isCovered = false;
    if (!isLast) return;
    whole += isWhole;
    if (++ended === count) {
      say({ whole, gaps });
      process.exit();
    }
  });
  socket.on("state", (state, { code, retryAt }) => {
    if (state !== "waiting" || code === 1006) return;
    // The first one to be cut begins the count.
    if (times.length === count) {
      times = [];
      cut = Date.now();
    }
    planned.push(retryAt - cut);
  });
  channel.on("state", (state) => {
    if (state !== "subscribed") return;
    times.push(Date.now() - cut);
    if (times.length === count) say({ times, planned });
  });
}
