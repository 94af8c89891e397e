// Instances: what is loaded where, and how busy it is; and the models that could be.

import { load, unload, unpin } from "./api.js";
import { bytes, duration, rate } from "./format.js";
import { Empty, Once, Panel, Twice, html } from "./ui.js";

export function Instances({ facts }) {
  return html`<${Panel} id="instances" title="Instances" count=${facts.instances.length}>
    ${facts.instances.length ? "" : html`<${Empty}>Nothing is loaded. A model is loaded when a job asks for it.<//>`}
    <ul class="rows">${facts.instances.map((each) => html`<${Instance} key=${each.instance} each=${each} now=${facts.at_ms} />`)}</ul>
  <//>`;
}

function Instance({ each, now }) {
  const isReady = each.state === "READY";
  return html`<li class="instance" aria-label=${`Instance ${each.instance}`}>
    <div class="who"><strong>${each.model}</strong><span class="quiet">${[each.node, each.instance, each.part].filter(Boolean).join(" · ")}</span></div>
    ${isReady
      ? html`<${Slots} used=${each.slots_used} slots=${each.slots} />
          <span class="figure"><b>${rate(each.tokens_per_s)}</b> tok/s</span>
          <span class="figure" title="tokens of answers in one step: mean so far, and the largest"><b>${each.batch_mean ?? "–"}</b> batch, ${each.batch_peak} peak</span>
          <span class="figure"><b>${bytes(each.memory)}</b>${each.numerics === "deterministic" ? " deterministic" : ""}</span>`
      : html`<span class="pill">${each.state.toLowerCase()}</span><span class="quiet wide">${each.reason || `for ${duration(now - each.since_ms)}`}, ${each.state === "HOLDING" ? bytes(each.memory) : `${bytes(each.reserved)} reserved`}</span>`}
  </li>`;
}

function Slots({ used, slots }) {
  const said = `${used} of ${slots} slots at work`;
  if (slots > 32) return html`<span class="figure"><b>${used}</b> of ${slots} slots</span>`;
  const dots = Array.from({ length: slots }, (_, number) => html`<i key=${number} class=${number < used ? "on" : ""}></i>`);
  return html`<span class="figure"><span class="dots slots" role="img" aria-label=${said}>${dots}</span> ${used}/${slots}</span>`;
}

const PINNED = {
  wanted: "An operator wants it kept loaded: it is never evicted",
  pinned: "By packtrain.toml: once loaded it is never evicted",
};

export function Models({ facts, run }) {
  const models = facts.models.filter((model) => !model.alias_of);
  return html`<${Panel} id="models" title="Models" count=${models.length}>
    ${models.length ? "" : html`<${Empty}>No model. Put a .gguf file into a model folder.<//>`}
    <ul class="rows">${models.map((model) => html`<${Model} key=${model.id} model=${model} isAdmin=${facts.is_admin} run=${run} />`)}</ul>
  <//>`;
}

function Model({ model, isAdmin, run }) {
  const state = model.loaded ? (model.loaded > 1 ? `loaded ${model.loaded} times` : "loaded") : model.coming ? "loading" : "";
  return html`<li class="model" aria-label=${`Model ${model.id}`}>
    <div class="who"><strong>${model.id}</strong><span class="quiet">${[model.about, bytes(model.needs)].filter(Boolean).join(" · ")}</span></div>
    ${state ? html`<span class=${model.loaded ? "pill good" : "pill"}>${state}</span>` : ""}
    ${model.wanted || model.pinned ? html`<span class="pill" title=${PINNED[model.wanted ? "wanted" : "pinned"]}>pinned</span>` : ""}
    ${isAdmin
      ? html`<span class="acts">
          ${model.wanted
            ? html`<${Once} label="unpin" name=${`Unpin ${model.id}`} act=${() => run(`${model.id} stays for as long as it is used`, () => unpin(model.id))} />`
            : html`<${Once} label=${model.loaded ? "pin" : "load"} name=${model.loaded ? `Pin ${model.id}` : `Load ${model.id} and pin it`} act=${() => run(`${model.id} will be loaded and kept`, () => load(model.id))} />`}
          ${model.loaded || model.coming || model.wanted ? html`<${Twice} label="unload" name=${`Unload ${model.id}`} act=${() => run(`${model.id} will be unloaded`, () => unload(model.id))} />` : ""}
        </span>`
      : ""}
  </li>`;
}
