/** The page: what it sends, and what it does with the events of the connection. */

import { connect } from "django-sockets";
import { Log } from "./log.js";
import { textOf } from "./status.js";

const ROOM = "room:lobby";
const RETRY_MS = 1000;
const NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon"];

const [state, link, count, sayForm, nameInput, textInput] = ["state", "link", "count", "say", "name", "text"]
  .map((id) => document.getElementById(id));
const log = new Log(document.getElementById("log"), document.getElementById("hint"));
let connectedAt = 0; // Seconds, by the clock of the server.
let loads = 0; // Requests for the newest messages that are under way.
const held = []; // Messages that have arrived since.

const socket = connect("/ws/");
const room = socket.channel(ROOM, { replay: 100 });

// The messages

socket.on("message", ({ now }) => (connectedAt = now));
room.on("message", (message) => (loads ? held.push(message) : show(message)));
room.on("gap", loadLatest);

function show(message, isLate = log.wasCut && message.at < connectedAt) {
  log.message(message, isLate, message.name === nameInput.value.trim());
}

/**
 * Messages may be missing here, for example because the broker was restarted and has forgotten them.
 * Show the newest ones that it has, before those that arrive meanwhile; `log` shows none of them twice.
 * A gap is told once only, so this does not give up.
 */
async function loadLatest() {
  loads += 1;
  log.note("Some messages may be missing here.");
  let latest;
  while (!latest) {
    latest = await socket.request("latest").catch(() => null);
    if (!latest) await new Promise((done) => setTimeout(done, RETRY_MS));
  }
  for (const message of latest) show(message, true);
  loads -= 1;
  if (!loads) for (const message of held.splice(0)) show(message);
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
