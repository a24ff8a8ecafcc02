/** The page: the connection, the room of the address, and what is shown. */

import { connect } from "django-sockets";

const LINES_KEPT = 500;
const SAY_WRITING_SECONDS = 2; // At most so often.
const WRITING_SECONDS = 3; // Who has not written for so long has stopped.

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

const writing = new Map(); // name -> the timer that ends it
const socket = connect("/ws/");
let room = null; // Where this tab is, or wants to be.
let messages = null; // The channel of the room: what is said, and who is here.
let hints = null; // The channel that tells who writes.
let hasEntered = false;
let lastSpeaker = null;
let saidWriting = 0;
let following = true; // The log is scrolled to its end: new lines keep it there.

// The connection

socket.on("state", (name, { reason, code }) => {
  if (name === "connected") {
    enter();
  } else if (name === "connecting") {
    setState(name, "Connecting …");
  } else if (name === "waiting") {
    hasEntered = false;
    for (const name of [...writing.keys()]) stopWriting(name);
    setState("waiting", reason === "unreachable" ? "No server, trying again …" : "Reconnecting …");
  } else if (reason === "refused") {
    setState("ended", "Logged out");
    panel("You were logged out", "Nothing more comes in here.", "Log in again", document.body.dataset.login);
  } else {
    setState("ended", "Refused");
    panel("The server has closed the connection", `It gave the code ${code}.`, "Load the page again", location.href);
  }
});

// The room is the part of the address after "#".

function open() {
  room = location.hash.slice(1) || links[0].dataset.room;
  messages?.close();
  hints?.close();
  for (const name of [...writing.keys()]) stopWriting(name);
  log.replaceChildren();
  log.hidden = false;
  refused.hidden = true;
  mark(room);
  note(`You entered ${titleOf(room)}`);
  // What was said while a tab was not connected comes after the next connection, each once.
  messages = socket.channel(`room:${room}`, { replay: 20, presence: true });
  messages.on("message", (event) => {
    stopWriting(event.name);
    message(event);
  });
  messages.on("gap", () => note("Some messages may be missing here."));
  // After a lost connection, only those who have really come or left meanwhile have an event.
  messages.presence.on("join", (id, [{ name }]) => name !== me && note(`${name} entered`));
  messages.presence.on("leave", (id, [{ name }]) => {
    stopWriting(name);
    if (name !== me) note(`${name} left`);
  });
  messages.presence.on("sync", showPeople);
  showPeople();
  hints = socket.channel(`writing:${room}`);
  hints.on("message", ({ name }) => startWriting(name));
  if (socket.state === "connected") enter();
}

/** Tell the server where this tab is: after each connection, and in each room. */
async function enter() {
  const wanted = room;
  hasEntered = false;
  try {
    await socket.request("enter", { room: wanted });
    if (wanted !== room) return;
    hasEntered = true;
  } catch (error) {
    if (wanted !== room) return;
    if (error.code === "forbidden") {
      panel("You may not enter this room", "It is for staff only.", "Go to the lobby", "#lobby");
    } else if (error.code !== "disconnected" && socket.state === "connected") {
      setTimeout(() => wanted === room && !hasEntered && enter(), 1000);
    }
  }
  if (socket.state === "connected") setState("connected", "Connected");
}

window.addEventListener("hashchange", open);

// The page. Whatever others wrote goes through textContent, which never makes markup of it.

function setState(name, text) {
  state.dataset.state = name;
  if (state.textContent !== text) state.textContent = text;
  sayForm.hidden = name === "ended" || (name === "connected" && !refused.hidden);
  sendButton.disabled = name !== "connected" || !hasEntered;
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
}

function showPeople() {
  const members = [...messages.presence.list().values()];
  const names = members.map(([{ name }]) => name).sort((a, b) => a.localeCompare(b));
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
  if (hasEntered) socket.send("writing");
});

sayForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = textInput.value.trim();
  if (!text || sendButton.disabled) return;
  textInput.value = "";
  saidWriting = 0;
  try {
    await socket.request("say", { text });
  } catch {
    note("Your message could not be sent. Please try again.");
    textInput.value ||= text;
  }
});

open();
