/** The events of a page: hidden and shown, frozen, left and restored, offline and online. */

/**
 * @param {import("./environment.js").Environment} env
 * @param {object} on
 * @param {() => void} on.awake  the page was shown or resumed, or the network has come back
 * @param {() => void} on.gone  the page is left; the browser may keep it for the back button
 * @param {() => void} on.restored  the browser shows the page again
 * @returns {() => void} ends it
 */
export function watchPage({ window, document }, on) {
  const controller = new AbortController();
  /**
   * @param {EventTarget | undefined} target
   * @param {string} event
   * @param {() => void} listener
   */
  const listen = (target, event, listener) =>
    target?.addEventListener(event, listener, { signal: controller.signal });
  listen(window, "online", on.awake);
  listen(document, "resume", on.awake);
  listen(document, "visibilitychange", () => {
    if (document?.visibilityState === "visible") on.awake();
  });
  if (document) {
    listen(window, "pagehide", on.gone);
    listen(window, "pageshow", on.restored);
  }
  return () => controller.abort();
}
