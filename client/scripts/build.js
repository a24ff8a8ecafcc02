/**
 * Build the files that browsers load. They go to the Python package, as static files, and to dist/,
 * for npm. With --check, compare them with those in the Python package instead.
 */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = new URL("../", import.meta.url);
const targets = [new URL("../django_sockets/static/django_sockets/", root), new URL("dist/", root)];
const MOST_BYTES = 12 * 1024;

/** Properties of objects that stay inside the client: they get short names. */
const INTERNAL = `
  answer answered awake base begin call check control deliver discard disconnected done emit end
  ended entry expires fail fits forgetParts frame gone greeted heard isFull isGreeted isLate
  isMissing isReady isRenewable leave noteGap notePresence nowMs post refresh release restored
  schedule sent setClosed stop stopTimer take text timer update use value write
`.trim().split(/\s+/);

/** @param {string} name */
async function bundle(name) {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(`src/${name}.js`, root))],
    bundle: true,
    charset: "utf8",
    external: ["react"],
    format: "esm",
    legalComments: "none",
    logLevel: "warning",
    mangleProps: new RegExp(`^(${INTERNAL.join("|")})$`),
    minify: true,
    target: "es2022",
    write: false,
  });
  return outputFiles[0].text;
}

/** @returns {Promise<Map<string, string>>} */
async function files() {
  const made = new Map();
  for (const name of ["client", "events", "react"]) {
    made.set(`${name}.js`, await bundle(name));
    made.set(`${name}.d.ts`, await readFile(new URL(`types/${name}.d.ts`, root), "utf8"));
  }
  return made;
}

const made = await files();
const bytes = Buffer.byteLength(made.get("client.js"));
console.log(`client.js: ${bytes} of ${MOST_BYTES} bytes`);
if (bytes > MOST_BYTES) process.exit(1);
if (process.argv.includes("--check")) {
  for (const [name, text] of made) {
    const present = await readFile(new URL(name, targets[0]), "utf8").catch(() => "");
    if (present === text) continue;
    console.error(`${name} is not the build of client/src: run "make client"`);
    process.exitCode = 1;
  }
} else {
  for (const target of targets) {
    await mkdir(target, { recursive: true });
    for (const [name, text] of made) await writeFile(new URL(name, target), text);
  }
}
