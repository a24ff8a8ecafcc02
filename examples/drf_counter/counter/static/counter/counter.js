"use strict";

const form = document.getElementById("open");
const tokenInput = document.getElementById("token");
const state = document.getElementById("state");
const value = document.getElementById("value");
const add = document.getElementById("add");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const token = tokenInput.value.trim();
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  // A page can set no header on a websocket. The token goes along as a subprotocol; the server
  // answers with the first of the two, so that the token does not come back.
  const protocols = ["django-sockets.token", token];
  const socket = new WebSocket(`${scheme}//${location.host}/ws/count/`, protocols);
  state.textContent = "Connecting …";
  socket.onopen = () => show("Connected", true);
  let count = -1;
  socket.onmessage = (message) => {
    // A change that the first value contains already follows it once more: the larger count is the
    // newer one.
    count = Math.max(count, JSON.parse(message.data).value);
    value.textContent = count;
  };
  socket.onclose = ({ code }) => {
    show(code === 4401 ? "The token is no longer valid" : "Not connected: is the token right?", false);
  };
});

function show(text, connected) {
  state.textContent = text;
  state.dataset.connected = connected;
  form.hidden = connected;
  add.hidden = !connected;
}

add.addEventListener("click", async () => {
  const headers = { Authorization: `Token ${tokenInput.value.trim()}` };
  const response = await fetch("/api/count/", { method: "POST", headers });
  if (!response.ok) state.textContent = `The server answered ${response.status}`;
  // The new value comes through the websocket, here as everywhere.
});
