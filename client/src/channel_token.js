/** The token of a channel, and the function that fetches the next one. */

import { isFunction } from "./frames.js";

/** @typedef {import("../types/client.js").ChannelOptions} ChannelOptions */

/**
 * @param {import("./environment.js").Environment} env
 * @param {string} channel
 */
export function createToken(env, channel) {
  /** @type {ChannelOptions["renew"]} */
  let fetch;
  /** @type {string | undefined} */
  let value;
  let expiresAt = Infinity;
  let isFetching = false;

  /** @param {string | undefined} next */
  const set = (next) => {
    value = next;
    expiresAt = Infinity;
  };

  return {
    /** The token to send, or undefined. */
    value: () => value,

    /** Whether a new token can be fetched. */
    isRenewable: () => !!fetch,

    /** Whether a token must be fetched before subscribing. */
    isMissing: () => !!fetch && (value === undefined || env.nowMs() >= expiresAt),

    /**
     * Take the options of a use of the channel; the newest ones count.
     *
     * @param {ChannelOptions} options
     */
    update({ token, renew }) {
      if (isFunction(token)) fetch = token;
      else if (token != null) set(token);
      if (renew) fetch = renew;
    },

    /** The server does not accept the token any more. */
    discard: () => set(undefined),

    /** @param {number} at */
    expires(at) {
      expiresAt = at;
    },

    /**
     * Fetch the next token. There is one call at a time; further ones have no effect.
     *
     * @param {(token: string | null) => void} done
     * @param {() => void} fail
     */
    async refresh(done, fail) {
      if (isFetching) return;
      isFetching = true;
      let token;
      try {
        token = (await fetch?.(channel)) || null;
      } catch {
        token = undefined;
      }
      isFetching = false;
      if (token === undefined) return fail();
      if (token) set(token);
      done(token);
    },
  };
}
