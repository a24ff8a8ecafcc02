import { connect } from "/client.js";

const socket = connect("/ws/");
const { doubled } = { doubled: await socket.request("double", { n: 21 }) };
const room = socket.channel("room:1");
room.on("message", ({ n }) => postMessage(`${doubled} ${n}`));
room.on("state", (state) => state === "subscribed" && socket.send("say", { n: 7 }));
