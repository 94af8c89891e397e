// One stream of snapshots, kept open while the page is visible and opened again whenever it breaks.
//
// A tab in the background reads nothing, so the gateway stops looking at the fleet for it. A connection that says
// nothing for ten seconds has died without a word, as they do when a laptop sleeps.

import { NATIVE, Refused, stream } from "./api.js";

const SILENT_MS = 10_000;
const AGAIN_MS = 1000;

/**
 * Follow the fleet until the returned function is called.
 * @param onSnapshot gets each snapshot
 * @param onTrouble gets an Error while nothing arrives; a `Refused` that needs a key ends the following
 */
export function follow(onSnapshot, onTrouble) {
  const end = new AbortController();
  run(end.signal, onSnapshot, onTrouble);
  return () => end.abort();
}

async function run(end, onSnapshot, onTrouble) {
  while (!end.aborted) {
    if (document.hidden) {
      await once(document, "visibilitychange");
      continue;
    }
    const turn = new AbortController();
    const leave = () => turn.abort();
    const hide = () => document.hidden && leave();
    end.addEventListener("abort", leave);
    document.addEventListener("visibilitychange", hide);
    let watchdog = setTimeout(leave, SILENT_MS);
    try {
      for await (const { event, data } of stream("GET", `${NATIVE}/fleet/feed`, undefined, turn.signal)) {
        clearTimeout(watchdog);
        watchdog = setTimeout(leave, SILENT_MS);
        if (event === "snapshot") onSnapshot(JSON.parse(data));
        if (event === "error") onTrouble(refusal(JSON.parse(data).error));
      }
    } catch (error) {
      if (end.aborted) return;
      if (!turn.signal.aborted) onTrouble(error instanceof Refused ? error : new Error("the gateway does not answer"));
      if (error.needsKey) return;
    } finally {
      clearTimeout(watchdog);
      document.removeEventListener("visibilitychange", hide);
      end.removeEventListener("abort", leave);
    }
    await new Promise((done) => setTimeout(done, AGAIN_MS));
  }
}

const refusal = (error) => new Refused(error.code === "invalid_api_key" ? 401 : 503, error.message);

const once = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));
