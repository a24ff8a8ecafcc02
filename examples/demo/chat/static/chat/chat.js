"use strict";

const FIRST_DELAY_SECONDS = 0.5;
const LONGEST_DELAY_SECONDS = 10;
const LINES_KEPT = 500;

const state = document.getElementById("state");
const joinForm = document.getElementById("join");
const nameInput = document.getElementById("name");
const log = document.getElementById("log");
const sayForm = document.getElementById("say");
const textInput = document.getElementById("text");
const sendButton = sayForm.querySelector("button");

let socket = null;
let timer = null; // Set while a new attempt is due.
let failures = 0; // Attempts since the last welcome.
let wasConnected = false;
let myName = "";
let myId = null;
let lastSpeaker = null;
let following = true; // The log is scrolled to its end: new lines keep it there.

// The connection

function connect() {
  clearTimeout(timer);
  timer = null;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(`${scheme}//${location.host}/ws/`);
  socket.onopen = () => transmit({ join: myName });
  socket.onmessage = (event) => take(JSON.parse(event.data));
  socket.onclose = reconnectLater;
}

// Doubling delays, so that a server in trouble gets rest; random, so that a thousand tabs that
// lost their server in the same moment do not all come back in the same moment.
function reconnectLater() {
  const longest = Math.min(FIRST_DELAY_SECONDS * 2 ** failures, LONGEST_DELAY_SECONDS);
  failures += 1;
  if (state.dataset.state !== "lost") setState("lost", "Reconnecting …");
  timer = setTimeout(connect, 1000 * longest * (0.5 + Math.random() / 2));
}

window.addEventListener("online", () => {
  if (timer !== null) connect();
});

function transmit(data) {
  socket.send(JSON.stringify(data));
}

// What the server says

function take(event) {
  const mine = event.id === myId;
  switch (event.kind) {
    case "welcome":
      if (wasConnected) note("Connected again. You may have missed messages.");
      failures = 0;
      wasConnected = true;
      myId = event.id;
      setState("connected", "Connected");
      break;
    case "joined":
      note(mine ? `You joined as ${event.name}` : `${event.name} joined`);
      break;
    case "left":
      note(`${event.name} left`);
      break;
    case "said":
      message(event, mine);
      break;
    case "gap":
      note("Some messages may be missing here.");
      break;
    case "failed":
      note("Your message could not be sent. Please try again.");
      textInput.value ||= event.text;
      break;
  }
}

// The page. Whatever others wrote goes through textContent, which never makes markup of it.

function setState(name, text) {
  state.dataset.state = name;
  state.textContent = text;
  sendButton.disabled = name !== "connected";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function note(text) {
  lastSpeaker = null;
  append(element("li", "note", text));
}

function message({ id, name, text }, mine) {
  const line = element("li", mine ? "message mine" : "message", "");
  if (id !== lastSpeaker) {
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const head = element("p", "head", "");
    head.append(element("strong", "", mine ? "You" : name), " ", element("time", "", time));
    line.append(head);
  }
  line.append(element("p", "text", text));
  lastSpeaker = id;
  append(line);
}

function append(line) {
  log.append(line);
  while (log.children.length > LINES_KEPT) log.firstElementChild.remove();
  follow();
}

function follow() {
  if (following) log.scrollTop = log.scrollHeight;
}

log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
});
new ResizeObserver(follow).observe(log); // A phone's keyboard takes half the window.

joinForm.addEventListener("submit", (event) => {
  event.preventDefault();
  myName = nameInput.value.trim();
  if (!myName) return;
  sessionStorage.setItem("name", myName);
  joinForm.hidden = true;
  log.hidden = sayForm.hidden = false;
  textInput.focus();
  setState("connecting", "Connecting …");
  connect();
});

sayForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = textInput.value.trim();
  if (!text || sendButton.disabled) return;
  transmit({ say: text });
  textInput.value = "";
});

nameInput.value = sessionStorage.getItem("name") || "";
