// What happened to the fleet, newest first: loads, unloads, jobs that were told why not, and faults.

import { clock, duration } from "./format.js";
import { Empty, Panel, html } from "./ui.js";

const WORDS = { load: "loaded", unload: "unloaded", reject: "refused", fault: "fault" };

export function Events({ facts }) {
  return html`<${Panel} id="events" title="Events">
    ${facts.events.length ? "" : html`<${Empty}>Nothing has happened yet.<//>`}
    <ol class="events" tabindex="0" aria-label="Events, newest first">
      ${facts.events.map(
        (event) => html`<li class=${event.kind} key=${event.at_ms + event.kind + event.model + event.node + event.text}>
          <time datetime=${new Date(event.at_ms).toISOString()} title=${clock(event.at_ms)}>${duration(facts.at_ms - event.at_ms)} ago</time>
          <span><b>${WORDS[event.kind]}</b> ${event.model}${event.node ? ` on ${event.node}` : ""}</span>
          <span class="quiet">${event.text}</span>
        </li>`,
      )}
    </ol>
  <//>`;
}
