// Nodes: what takes their memory, and their cores.

import { change } from "./api.js";
import { bytes } from "./format.js";
import { Empty, Once, Panel, Twice, html } from "./ui.js";

/** The parts of a memory bar, from left to right. */
export const PARTS = [
  ["weights", "weights"],
  ["kv", "KV cache"],
  ["other", "other"],
  ["reserved", "reserved"],
  ["outside", "other programs"],
  ["free", "free"],
];

export function Nodes({ facts, run }) {
  const isMixed = new Set(facts.nodes.map((node) => node.version)).size > 1; // while the fleet is upgraded
  return html`<${Panel} id="nodes" title="Nodes" count=${facts.nodes.length} aside=${html`<${Legend} />`}>
    ${facts.nodes.length ? "" : html`<${Empty}>No node reports. Start one with <code>packtrain node</code>.<//>`}
    <div class="nodes">${facts.nodes.map((node) => html`<${Node} key=${node.node} node=${node} isMixed=${isMixed} isAdmin=${facts.is_admin} run=${run} />`)}</div>
  <//>`;
}

const Legend = () => html`<ul class="legend" aria-hidden="true">
  ${PARTS.map(([part, label]) => html`<li><i class=${part}></i>${label}</li>`)}
</ul>`;

function Node({ node, isMixed, isAdmin, run }) {
  const { memory } = node;
  const taken = memory.budget - memory.free;
  return html`<article class="node" aria-label=${`Node ${node.node}`}>
    <header>
      <h3>${node.node}</h3>
      ${node.state === "up" ? "" : html`<span class="pill warn">${node.state}</span>`}
      <span class="quiet">${Object.entries(node.labels).map(([name, value]) => `${name}=${value}`).join(" ")}</span>
      ${isAdmin ? html`<${Control} node=${node} run=${run} />` : ""}
    </header>
    <${MemoryBar} memory=${memory} />
    <dl class="facts">
      <div><dt>memory</dt><dd>${bytes(taken)} of ${bytes(memory.budget)}</dd></div>
      <div><dt>cores</dt><dd><${Cores} used=${node.cores_used} cores=${node.cores} /></dd></div>
      <div><dt>models</dt><dd>${node.models}</dd></div>
      <div><dt>disk free</dt><dd>${bytes(node.disk_free)}</dd></div>
      ${isMixed ? html`<div><dt>Packtrain</dt><dd>${node.version || "before 0.2"}</dd></div>` : ""}
      ${node.gpus.map((gpu) => html`<div><dt>GPU</dt><dd>${gpu}</dd></div>`)}
    </dl>
    ${node.reason ? html`<p class="trouble">${node.reason}</p>` : ""}
    ${node.faults.map((fault) => html`<p class="quiet">${fault}</p>`)}
  </article>`;
}

function Control({ node, run }) {
  if (node.state === "up") {
    return html`<${Twice} label="drain" name=${`Drain ${node.node}`} act=${() => run(`${node.node} drains`, () => change(node.node, { draining: true }))} />`;
  }
  const wish = { draining: false, resume: true };
  return html`<${Once} label="resume" name=${`Resume ${node.node}`} act=${() => run(`${node.node} takes work again`, () => change(node.node, wish))} />`;
}

function MemoryBar({ memory }) {
  const total = Math.max(memory.budget, PARTS.reduce((sum, [part]) => sum + memory[part], 0)) || 1;
  const said = PARTS.map(([part, label]) => `${label} ${bytes(memory[part])}`).join(", ");
  return html`<div class="bar" role="img" aria-label=${`Memory: ${said}`}>
    ${PARTS.filter(([part]) => memory[part] > 0).map(
      ([part, label]) => html`<i key=${part} class=${part} style=${{ width: `${(memory[part] / total) * 100}%` }} title=${`${label} ${bytes(memory[part])}`}></i>`,
    )}
  </div>`;
}

/** More threads than cores may be at work, when more instances are than there are cores. */
function Cores({ used: threads, cores }) {
  const used = Math.min(threads, cores);
  if (cores > 32) return `${used} of ${cores} at work`;
  const dots = Array.from({ length: cores }, (_, number) => html`<i key=${number} class=${number < used ? "on" : ""}></i>`);
  return html`<span class="dots" role="img" aria-label=${`${used} of ${cores} cores at work`}>${dots}</span> ${used}/${cores}`;
}
