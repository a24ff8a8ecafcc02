/** The page: what it sends, and what it does with the events of the connection. */

import { connect } from "django-sockets";
import { Log } from "./log.js";
import { textOf } from "./status.js";

const ROOM = "room:lobby";
const NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon"];

const [state, link, count, sayForm, nameInput, textInput] = ["state", "link", "count", "say", "name", "text"]
  .map((id) => document.getElementById(id));
const log = new Log(document.getElementById("log"), document.getElementById("hint"));
let connectedAt = 0; // Seconds, by the clock of the server.

const socket = connect("/ws/");
const room = socket.channel(ROOM, { replay: 100 });

// The messages

socket.on("message", ({ now }) => (connectedAt = now));

room.on("message", (message) => {
  log.message(message, message.at < connectedAt && log.wasCut, message.name === nameInput.value.trim());
});

room.on("gap", () => {
  log.note("Some messages may be missing here.");
  loadLatest();
});

/**
 * Show the newest messages that the server has; `log` shows none of them twice. If that fails, try it
 * again: the gap is told once only.
 */
async function loadLatest() {
  try {
    for (const message of await socket.request("latest")) {
      log.message(message, true, message.name === nameInput.value.trim());
    }
  } catch {
    setTimeout(loadLatest, 1000);
  }
}

// The connection

socket.on("state", showState);
setInterval(() => showState(socket.state), 1000); // Counts down to the next attempt.

function showState(name) {
  const text = textOf(socket.status);
  state.dataset.state = name;
  if (state.textContent !== text) state.textContent = text;
  for (const button of [count, sayForm.querySelector("button")]) button.disabled = name !== "connected";
}

socket.on("state", (name) => {
  if (name === "connected") log.restored();
  else if (name !== "connecting") log.cut();
});

link.addEventListener("change", () => {
  if (link.checked) socket.reconnect();
  else socket.close();
});

// The requests

count.addEventListener("click", () => socket.request("count").catch(failed));

sayForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [name, text] = [nameInput.value.trim(), textInput.value.trim()];
  if (!name || !text || socket.state !== "connected") return;
  textInput.value = "";
  sessionStorage.setItem("name", name);
  const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16)).join("");
  try {
    await socket.request("say", { id, name, text });
  } catch (error) {
    textInput.value ||= text;
    failed(error);
  }
});

function failed(error) {
  log.note(error.temporary ? "That did not work. Please try again." : `That did not work: ${error.message}`);
}

nameInput.value = sessionStorage.getItem("name") || NAMES[Math.floor(Math.random() * NAMES.length)];
link.checked = true; // Browsers remember it over a reload.
showState(socket.state);
