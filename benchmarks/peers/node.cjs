// node: ws and one ioredis connection, as most examples on the web do it.
"use strict";

const { WebSocketServer } = require("ws");
const { Redis } = require("ioredis");

const subscriber = new Redis(process.env.BENCH_BROKER_URL);
const rooms = new Map();

subscriber.on("message", (room, text) => {
  for (const socket of rooms.get(room) ?? []) socket.send(text);
});

// "room-7" is one room; "room-/100/30" are thirty rooms, beginning with room-100.
function roomsOf(path) {
  const [name, ...numbers] = path.split("/");
  if (!numbers.length) return [name];
  const [first, count] = numbers.map(Number);
  return Array.from({ length: count }, (_, number) => name + (first + number));
}

async function join(socket, room) {
  const first = !rooms.has(room);
  if (first) rooms.set(room, new Set());
  const members = rooms.get(room);
  members.add(socket);
  socket.on("close", () => members.delete(socket));
  if (first) members.ready = subscriber.subscribe(room);
  await members.ready;
}

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  perMessageDeflate: process.argv[3] === "deflate",
  backlog: 4096,
});

server.on("connection", async (socket, request) => {
  await Promise.all(roomsOf(request.url.slice(1)).map((room) => join(socket, room)));
  if (process.env.BENCH_SILENT === undefined) socket.send('"joined"');
});
