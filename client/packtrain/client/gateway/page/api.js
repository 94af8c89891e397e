// The gateway's API, with the key of who looks. The key lives in this tab's sessionStorage and goes nowhere else.

import { readEvents } from "./sse.js";

/** Where the gateway is: a proxy may have put it behind a path. */
const ROOT = new URL("..", import.meta.url).pathname.replace(/\/$/, "");
export const NATIVE = "/packtrain/v1";
const KEY = "packtrain-key";

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

/** A request that was refused, with the sentence that the gateway says. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get needsKey() {
    return this.status === 401;
  }
}

async function send(method, path, body, signal) {
  const headers = { accept: "application/json" };
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(ROOT + path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(response.status, said?.error?.message ?? `${path} answered ${response.status}; see the gateway's log`);
}

/** The JSON of an answer. */
export const ask = async (method, path, body) => (await send(method, path, body)).json();

/** The events of an answer, as they come. */
export async function* stream(method, path, body, signal) {
  yield* readEvents((await send(method, path, body, signal)).body);
}

const model = (id) => `${NATIVE}/models/${id.split("/").map(encodeURIComponent).join("/")}`;

export const load = (id) => ask("POST", `${model(id)}/load`, {});
export const unpin = (id) => ask("PUT", `${model(id)}/desired`, { replicas: 0 });
export const unload = (id) => ask("POST", `${model(id)}/unload`, {});
export const change = (node, wish) => ask("PATCH", `${NATIVE}/nodes/${encodeURIComponent(node)}`, wish);
export const cancelJob = (id) => ask("POST", `${NATIVE}/jobs/${id}/cancel`);
export const cancelBatch = (id) => ask("POST", `/v1/batches/${encodeURIComponent(id)}/cancel`);
export const history = (seconds) => ask("GET", `${NATIVE}/fleet/history?span_s=${seconds}`);
