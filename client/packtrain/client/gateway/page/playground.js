// A chat with a model of the fleet, over the same API that everybody uses. It is kept in this tab and nowhere else.

import { useEffect, useRef, useState } from "preact/hooks";
import { stream } from "./api.js";
import { duration, rate } from "./format.js";
import { Panel, html } from "./ui.js";

export function Playground({ facts }) {
  const models = facts.models.filter((model) => model.answers);
  const [chosen, setChosen] = useState("");
  const [turns, setTurns] = useState([]);
  const [text, setText] = useState("");
  const [temperature, setTemperature] = useState("0.7");
  const [most, setMost] = useState("256");
  const [said, setSaid] = useState("");
  const [running, setRunning] = useState(null);
  const log = useRef(null);
  useEffect(() => { log.current?.scrollTo(0, log.current.scrollHeight); }, [turns]);
  const model = models.find((each) => each.id === chosen) ?? models.find((each) => each.loaded) ?? models[0];

  async function send(event) {
    event?.preventDefault();
    if (!text.trim() || running || !model) return;
    const turn = new AbortController();
    const asked = [...turns, { role: "user", content: text }];
    const begun = performance.now();
    let answer = { role: "assistant", content: "", thoughts: "" };
    let first = null;
    let pieces = 0;
    setRunning(turn);
    setText("");
    setSaid("waits …");
    setTurns([...asked, answer]);
    try {
      for await (const piece of answers(model, asked, { temperature: Number(temperature), max_tokens: Number(most) }, turn.signal)) {
        if (piece.waits) { setSaid(piece.waits); continue; }
        first ??= performance.now();
        pieces += 1;
        answer = { ...answer, content: answer.content + piece.text, thoughts: answer.thoughts + piece.thoughts };
        setTurns([...asked, answer]);
        setSaid(`first token after ${duration(first - begun)}`);
      }
      const seconds = (performance.now() - (first ?? begun)) / 1000;
      setSaid(first === null ? "ended without a word" : `first token after ${duration(first - begun)}, then ${rate((pieces - 1) / Math.max(seconds, 0.001))} pieces/s`);
    } catch (error) {
      setSaid(turn.signal.aborted ? "stopped" : error.message);
    }
    setRunning(null);
  }

  const keys = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); };
  const forget = html`<button type="button" class="small" disabled=${!turns.length || running} onClick=${() => { setTurns([]); setSaid(""); }}>new chat</button>`;
  return html`<${Panel} id="playground" title="Playground" aside=${forget}>
    <div class="chat" ref=${log} tabindex="0" role="log" aria-label="Chat">
      ${turns.length ? "" : html`<p class="empty">Say something to a model of this fleet.</p>`}
      ${turns.map((turn) => html`<div class=${`turn ${turn.role}`}>${turn.thoughts ? html`<p class="thoughts">${turn.thoughts}</p>` : ""}<p>${turn.content || (running ? "…" : "")}</p></div>`)}
    </div>
    <form class="ask" onSubmit=${send}>
      <textarea rows="2" aria-label="Prompt" placeholder="Enter sends, Shift+Enter begins a line" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${keys}></textarea>
      <div class="how">
        <label>model <select aria-label="Model" value=${model?.id ?? ""} onChange=${(event) => setChosen(event.target.value)}>
          ${models.map((each) => html`<option value=${each.id} key=${each.id}>${each.id}${each.loaded ? " ●" : ""}</option>`)}
        </select></label>
        <label>temperature <input type="number" min="0" max="2" step="0.1" value=${temperature} onInput=${(event) => setTemperature(event.target.value)} /></label>
        <label>tokens <input type="number" min="1" max="8192" step="1" value=${most} onInput=${(event) => setMost(event.target.value)} /></label>
        ${running
          ? html`<button type="button" class="main" onClick=${() => running.abort()}>Stop</button>`
          : html`<button type="submit" class="main" disabled=${!text.trim() || !model}>Send</button>`}
      </div>
    </form>
    <p class="quiet" aria-live="polite">${said}</p>
  <//>`;
}

/** What comes of a chat: `{text, thoughts}` piece by piece, and `{waits}` while it stands in the queue. */
async function* answers(model, turns, options, signal) {
  const messages = turns.map(({ role, content }) => ({ role, content }));
  const about = { model: model.id, stream: true, stream_options: { include_queue: true }, ...options };
  const [path, body] = model.chats
    ? ["/v1/chat/completions", { ...about, messages }]
    : ["/v1/completions", { ...about, prompt: messages.at(-1).content }];
  for await (const { event, data } of stream("POST", path, body, signal)) {
    if (data === "[DONE]") return;
    const sent = JSON.parse(data);
    if (sent.error) throw new Error(sent.error.message);
    if (event === "packtrain.queue") yield { waits: sent.reason };
    const choice = sent.choices?.[0];
    const piece = { text: choice?.delta?.content ?? choice?.text ?? "", thoughts: choice?.delta?.reasoning_content ?? "" };
    if (piece.text || piece.thoughts) yield piece;
  }
}
