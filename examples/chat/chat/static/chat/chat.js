"use strict";

const FIRST_DELAY_SECONDS = 0.5;
const LONGEST_DELAY_SECONDS = 10;
const LINES_KEPT = 500;
const SAY_WRITING_SECONDS = 2; // At most so often.
const WRITING_SECONDS = 3; // Who has not written for so long has stopped.

// After these there is no point in coming back: log in first, or not at all.
const FINAL = {
  4401: "Logged out",
  1008: "Refused",
};

const me = document.body.dataset.user;
const state = document.getElementById("state");
const log = document.getElementById("log");
const refused = document.getElementById("refused");
const peopleList = document.getElementById("people");
const writingLine = document.getElementById("writing");
const sayForm = document.getElementById("say");
const textInput = document.getElementById("text");
const sendButton = sayForm.querySelector("button");
const links = [...document.querySelectorAll("nav a")];

const people = new Map(); // id of a tab -> the name of its user
const writing = new Map(); // name -> the timer that ends it
let socket = null;
let timer = null; // Set while a new attempt is due.
let failures = 0; // Attempts since the last welcome.
let room = null; // Where the server has let us in.
let lastRoom = null;
let lastSpeaker = null;
let saidWriting = 0;
let following = true; // The log is scrolled to its end: new lines keep it there.

// The connection

function connect() {
  clearTimeout(timer);
  timer = null;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(`${scheme}//${location.host}/ws/`);
  socket.onopen = enter;
  socket.onmessage = (event) => take(JSON.parse(event.data));
  socket.onclose = lost;
}

function lost({ code }) {
  room = null;
  forgetPeople();
  if (code in FINAL) {
    setState("ended", FINAL[code]);
    if (code === 4401) {
      panel("You were logged out", "Nothing more comes in here.", "Log in again", document.body.dataset.login);
    } else {
      panel("The server refused this page", "It broke a rule of the server.", "Load it anew", location.href);
    }
    return;
  }
  reconnectLater();
}

// Doubling delays, so that a server in trouble gets rest; random, so that a thousand tabs that
// lost their server in the same moment do not all come back in the same moment.
function reconnectLater() {
  const longest = Math.min(FIRST_DELAY_SECONDS * 2 ** failures, LONGEST_DELAY_SECONDS);
  failures += 1;
  setState("lost", "Reconnecting …");
  timer = setTimeout(connect, 1000 * longest * (0.5 + Math.random() / 2));
}

window.addEventListener("online", () => {
  if (timer !== null) connect();
});

function transmit(data) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(data));
}

// The room is the part of the address after "#".

function wanted() {
  return location.hash.slice(1) || links[0].dataset.room;
}

function enter() {
  transmit({ type: "enter", room: wanted() });
}

window.addEventListener("hashchange", enter);

// What the server says

function take(event) {
  if (event.error) return note(`That was not understood: ${event.error.message}`);
  if ("room" in event && event.kind !== "welcome" && event.kind !== "refused" && event.room !== room) {
    return; // Of the room that we have just left.
  }
  switch (event.kind) {
    case "welcome":
      welcome(event);
      break;
    case "refused":
      room = null;
      failures = 0;
      forgetPeople();
      log.replaceChildren();
      setState("connected", "Connected");
      mark(event.room);
      panel("You may not enter this room", "It is for staff only.", "Go to the lobby", "#lobby");
      break;
    case "here":
    case "entered":
      if (event.kind === "entered" && !isHere(event.name)) note(`${event.name} entered`);
      people.set(event.id, event.name);
      showPeople();
      break;
    case "left":
      people.delete(event.id);
      stopWriting(event.name);
      if (!isHere(event.name)) note(`${event.name} left`);
      showPeople();
      break;
    case "writing":
      startWriting(event.name);
      break;
    case "said":
      stopWriting(event.name);
      message(event);
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

function welcome(event) {
  failures = 0;
  room = event.room;
  refused.hidden = true;
  log.hidden = false;
  forgetPeople();
  people.set(event.id, event.name);
  showPeople();
  mark(room);
  if (room === lastRoom) {
    note("Connected again. You may have missed messages.");
  } else {
    log.replaceChildren();
    note(`You entered ${titleOf(room)}`);
  }
  lastRoom = room;
  setState("connected", "Connected");
}

// The page. Whatever others wrote goes through textContent, which never makes markup of it.

function setState(name, text) {
  state.dataset.state = name;
  if (state.textContent !== text) state.textContent = text;
  sayForm.hidden = name === "ended" || (name === "connected" && room === null);
  sendButton.disabled = name !== "connected" || room === null;
  document.body.classList.toggle("ended", name === "ended");
}

function titleOf(name) {
  const link = links.find((link) => link.dataset.room === name);
  return link ? link.textContent.trim() : name;
}

function mark(name) {
  for (const link of links) {
    if (link.dataset.room === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function panel(title, text, action, href) {
  const link = element("a", "action", action);
  link.href = href;
  refused.replaceChildren(element("h2", "", title), element("p", "", text), link);
  refused.hidden = false;
  log.hidden = true;
  lastRoom = null;
}

function isHere(name) {
  return [...people.values()].includes(name);
}

function forgetPeople() {
  people.clear();
  for (const name of [...writing.keys()]) stopWriting(name);
  showPeople();
}

function showPeople() {
  const names = [...new Set(people.values())].sort((a, b) => a.localeCompare(b));
  peopleList.replaceChildren(...names.map((name) => {
    const item = element("li", "", name);
    item.prepend(avatar(name));
    if (name === me) item.append(element("span", "you", "(you)"));
    return item;
  }));
}

function startWriting(name) {
  if (name === me) return; // In another tab.
  clearTimeout(writing.get(name));
  writing.set(name, setTimeout(() => stopWriting(name), 1000 * WRITING_SECONDS));
  showWriting();
}

function stopWriting(name) {
  clearTimeout(writing.get(name));
  writing.delete(name);
  showWriting();
}

function showWriting() {
  const names = [...writing.keys()];
  const verb = names.length === 1 ? "is" : "are";
  writingLine.textContent = names.length ? `${names.join(" and ")} ${verb} writing …` : "";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// The first letter, in a colour that goes with the name.
function avatar(name) {
  const made = element("span", "avatar", name.slice(0, 1).toUpperCase());
  made.ariaHidden = "true";
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 0);
  made.style.setProperty("--hue", hue);
  return made;
}

function note(text) {
  lastSpeaker = null;
  append(element("li", "note", text));
}

function message({ name, text }) {
  const mine = name === me;
  const line = element("li", mine ? "message mine" : "message", "");
  if (name !== lastSpeaker) {
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const head = element("p", "head", "");
    head.append(element("strong", "", mine ? "You" : name), " ", element("time", "", time));
    if (!mine) head.prepend(avatar(name));
    line.append(head);
  }
  line.append(element("p", "text", text));
  lastSpeaker = name;
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

textInput.addEventListener("input", () => {
  const now = Date.now();
  if (!textInput.value || now - saidWriting < 1000 * SAY_WRITING_SECONDS) return;
  saidWriting = now;
  transmit({ type: "writing" });
});

sayForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = textInput.value.trim();
  if (!text || sendButton.disabled) return;
  transmit({ type: "say", text });
  textInput.value = "";
  saidWriting = 0;
});

connect();
