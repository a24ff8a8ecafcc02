// node: ws and one ioredis connection, as most examples on the web do it.
"use strict";

const { WebSocketServer } = require("ws");
const { Redis } = require("ioredis");

const subscriber = new Redis(process.env.BENCH_BROKER_URL);
const rooms = new Map();

subscriber.on("message", (room, text) => {
  for (const socket of rooms.get(room) ?? []) socket.send(text);
});

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  perMessageDeflate: false,
  backlog: 4096,
});

server.on("connection", async (socket, request) => {
  const room = request.url.slice(1);
  const first = !rooms.has(room);
  if (first) rooms.set(room, new Set());
  const members = rooms.get(room);
  members.add(socket);
  socket.on("close", () => members.delete(socket));
  if (first) members.ready = subscriber.subscribe(room);
  await members.ready;
  if (process.env.BENCH_SILENT === undefined) socket.send('"joined"');
});
