// The fleet page: one snapshot of the fleet each second, and every part of the page a function of it.

import { render } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { key, setKey } from "./api.js";
import { Charts } from "./charts.js";
import { Events } from "./events.js";
import { follow } from "./feed.js";
import { count, rate } from "./format.js";
import { Instances, Models } from "./instances.js";
import { Batches, Jobs, Queues } from "./jobs.js";
import { Nodes } from "./nodes.js";
import { Playground } from "./playground.js";
import { html } from "./ui.js";

const THEMES = ["light dark", "light", "dark"];
const THEME_WORDS = { "light dark": "auto", light: "light", dark: "dark" };

const PARTS = ["nodes", "instances", "models", "playground", "events", "jobs"];

function App() {
  const [facts, setFacts] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const [notice, setNotice] = useState(null);
  const [session, setSession] = useState(0);
  const [theme, setTheme, isDark] = useTheme();

  useEffect(() => follow(
    (found) => { setFacts(found); setTrouble(null); },
    (error) => { setTrouble(error); if (error.needsKey) setFacts(null); },
  ), [session]);

  /** Do something to the fleet, and say so, or why not. */
  const run = useCallback(async (done, act) => {
    try {
      await act();
      setNotice({ text: done });
    } catch (error) {
      setNotice({ text: error.message, isBad: true });
    }
  }, []);
  useEffect(() => {
    if (!notice) return undefined;
    const timer = setTimeout(() => setNotice(null), notice.isBad ? 12_000 : 4000);
    return () => clearTimeout(timer);
  }, [notice]);

  const enter = (text) => { setKey(text); setFacts(null); setTrouble(null); setSession(session + 1); };
  return html`
    <${Head} facts=${facts} trouble=${trouble} theme=${theme} setTheme=${setTheme} forget=${() => enter("")} />
    ${trouble?.needsKey ? html`<${AskKey} why=${trouble.message} enter=${enter} />` : ""}
    ${facts ? html`<${Fleet} facts=${facts} run=${run} isDark=${isDark} />` : ""}
    ${!facts && !trouble ? html`<p class="hello">Looking at the fleet …</p>` : ""}
    <div class=${notice?.isBad ? "notice bad" : "notice"} role="status" aria-live="polite" hidden=${!notice}>${notice?.text}</div>`;
}

function Fleet({ facts, run, isDark }) {
  return html`<main>
    <${Figures} facts=${facts} />
    <${Charts} theme=${isDark} />
    <${Nodes} facts=${facts} run=${run} />
    <div class="columns">
      <div><${Instances} facts=${facts} /><${Queues} facts=${facts} /><${Models} facts=${facts} run=${run} /><${Batches} facts=${facts} run=${run} /></div>
      <div><${Playground} facts=${facts} /><${Events} facts=${facts} /></div>
    </div>
    <${Jobs} facts=${facts} run=${run} />
  </main>`;
}

function Head({ facts, trouble, theme, setTheme, forget }) {
  const links = Object.entries(facts?.links ?? {}).filter(([, url]) => isReachable(url));
  return html`<header class="top">
    <h1><img src="page/icon.svg" alt="" width="26" height="26" /> Packtrain</h1>
    ${facts ? html`<nav aria-label="On this page">${PARTS.map((id) => html`<a href=${`#${id}`}>${id}</a>`)}</nav>` : ""}
    <nav class="elsewhere" aria-label="Elsewhere">
      ${links.map(([name, url]) => html`<a href=${url} rel="noopener noreferrer">${name}</a>`)}
      <a href="docs">API</a>
    </nav>
    <span class="signs">
      ${trouble ? html`<span class="pill bad" role="alert">${trouble.needsKey ? "needs a key" : trouble.message}</span>` : ""}
      ${facts && !facts.is_led ? html`<span class="pill bad">no coordinator leads</span>` : ""}
      ${facts && !trouble ? html`<span class="pill good">live</span>` : ""}
      <button type="button" class="small" onClick=${() => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % 3])} aria-label=${`Theme: ${THEME_WORDS[theme]}; change`}>${THEME_WORDS[theme]}</button>
      ${key() ? html`<button type="button" class="small" onClick=${forget}>forget key</button>` : ""}
    </span>
  </header>`;
}

/** A loopback URL is of use on the machine itself only. */
function isReachable(url) {
  const isHere = (host) => host === "localhost" || host === "[::1]" || host.startsWith("127.");
  return /^https?:/.test(url) && (!isHere(new URL(url).hostname) || isHere(location.hostname));
}

function Figures({ facts }) {
  const ready = facts.instances.filter((each) => each.state === "READY");
  const sum = (rows, field) => rows.reduce((total, row) => total + row[field], 0);
  const figures = [
    [rate(facts.tokens_per_s), "tokens/s"],
    [`${sum(ready, "slots_used")}/${sum(ready, "slots")}`, "slots at work"],
    [count(sum(facts.queues, "waiting")), "jobs wait"],
    [`${ready.length}`, ready.length === 1 ? "instance" : "instances"],
    [`${facts.nodes.filter((node) => node.state === "up").length}/${facts.nodes.length}`, "nodes take work"],
  ];
  return html`<ul class="figures" aria-label="The fleet in figures">${figures.map(([value, name]) => html`<li key=${name}><b>${value}</b><span>${name}</span></li>`)}</ul>`;
}

function AskKey({ why, enter }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const send = (event) => { event.preventDefault(); if (text.trim()) enter(text.trim()); };
  return html`<form class="panel key" onSubmit=${send}>
    <h2>This gateway asks for an API key</h2>
    <p>${why}</p>
    <label for="api-key">API key</label>
    <div class="field"><input id="api-key" ref=${field} type="password" autocomplete="off" spellcheck=${false} value=${text} onInput=${(event) => setText(event.target.value)} /><button type="submit" class="main">Enter</button></div>
    <p class="quiet">It stays in this tab, and is forgotten when you close it.</p>
  </form>`;
}

function useTheme() {
  const [theme, setTheme] = useState(localStorage.getItem("packtrain-theme") ?? THEMES[0]);
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [prefersDark, setPrefersDark] = useState(query.matches);
  document.documentElement.style.colorScheme = theme;
  useEffect(() => {
    const changed = (event) => setPrefersDark(event.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  const choose = (next) => { localStorage.setItem("packtrain-theme", next); setTheme(next); };
  return [theme, choose, theme === "dark" || (theme !== "light" && prefersDark)];
}

const app = document.getElementById("app");
app.replaceChildren();
render(html`<${App} />`, app);
