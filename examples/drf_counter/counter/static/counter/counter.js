/** The page: a token, the connection with it, and the count. */

import { connect } from "django-sockets";

const form = document.getElementById("open");
const tokenInput = document.getElementById("token");
const state = document.getElementById("state");
const value = document.getElementById("value");
const add = document.getElementById("add");

let socket = null;
let count = -1;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  socket?.close();
  // The token travels as a subprotocol, and never in the address.
  socket = connect("/ws/count/", { token: tokenInput.value.trim() });
  socket.on("state", show);
  // After each connection, and after a gap, the server sends the value first. A change that the value
  // contains already may follow it once more: the larger count is the newer one.
  socket.on("message", (message) => {
    count = Math.max(count, message.value);
    value.textContent = count;
  });
});

function show(name, { reason, code }) {
  state.dataset.connected = name === "connected";
  form.hidden = name !== "closed";
  add.hidden = name === "closed";
  if (name === "connecting") state.textContent = "Connecting …";
  else if (name === "connected") state.textContent = "Connected";
  else if (name === "waiting") state.textContent = "Not connected, trying again …";
  else if (reason === "refused") state.textContent = "The token is not valid, or no longer";
  else state.textContent = `The server has closed the connection (${code})`;
}

add.addEventListener("click", async () => {
  const headers = { Authorization: `Token ${tokenInput.value.trim()}` };
  try {
    const response = await fetch("/api/count/", { method: "POST", headers });
    if (!response.ok) state.textContent = `The server answered ${response.status}`;
  } catch {
    state.textContent = "The server cannot be reached";
  }
  // The new value comes through the websocket, here as everywhere.
});
