/** The page of tests/browser/test_client.py for the React hooks; it is bundled for the test. */

import { StrictMode, createElement, useState } from "react";
import { createRoot } from "react-dom/client";

import { connect } from "../src/client.js";
import { useChannel, usePresence, useSocketState } from "../src/react.js";

const socket = (window.socket = connect("/ws/"));
window.renders = 0;
window.gaps = 0;

function Room({ name }) {
  const [numbers, setNumbers] = useState([]);
  const state = useChannel(socket, name, {
    // A new function for each render.
    onMessage: ({ n }) => setNumbers((before) => [...before, n]),
    onGap: () => window.gaps++,
  });
  window.renders++;
  return createElement("p", { id: "room" }, `${name} ${state} ${numbers.join(",")}`);
}

function Present() {
  const infos = [...usePresence(socket, "room:1").values()].flat();
  return createElement("p", { id: "present" }, infos.map(({ n }) => n).join(","));
}

function App() {
  const [name, setName] = useState("room:1");
  window.setName = setName;
  return createElement(
    "main",
    null,
    createElement("p", { id: "state" }, useSocketState(socket)),
    name === "none" ? null : createElement(Room, { name, key: name }),
    name === "room:1" && createElement(Present),
  );
}

// Strict mode mounts each component twice.
createRoot(document.getElementById("root")).render(createElement(StrictMode, null, createElement(App)));
