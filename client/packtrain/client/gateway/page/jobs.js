// Jobs and what they wait in: queues, the jobs themselves, batches of them.

import { useState } from "preact/hooks";
import { cancelBatch, cancelJob } from "./api.js";
import { count, duration, short } from "./format.js";
import { Empty, Panel, Twice, html } from "./ui.js";

export function Queues({ facts }) {
  const most = Math.max(1, ...facts.queues.map((queue) => queue.waiting));
  return html`<${Panel} id="queues" title="Queues" count=${count(facts.queues.reduce((sum, queue) => sum + queue.waiting, 0))}>
    ${facts.queues.length ? "" : html`<${Empty}>Nothing waits.<//>`}
    <ul class="rows">
      ${facts.queues.map(
        (queue) => html`<li class="queue" key=${queue.route + queue.lane}>
          <div class="who"><strong>${queue.route}</strong><span class="quiet">${queue.lane}</span></div>
          <span class="length" aria-hidden="true"><i class=${queue.lane} style=${{ width: `${(queue.waiting / most) * 100}%` }}></i></span>
          <span class="figure"><b>${count(queue.waiting)}</b> waiting</span>
          <span class="figure">oldest <b>${duration(queue.oldest_ms)}</b></span>
          ${queue.reason ? html`<span class="quiet wide">${queue.reason}</span>` : ""}
        </li>`,
      )}
    </ul>
  <//>`;
}

/** Jobs that are shown unasked: so many under way, so many that ended. */
const FEW_LIVE = 24;
const FEW_ENDED = 8;

const isOver = (job) => !(job.state in { RUNNING: 0, QUEUED: 0 });

export function Jobs({ facts, run }) {
  const [all, setAll] = useState(false);
  const live = facts.jobs.filter((job) => !isOver(job));
  const ended = facts.jobs.filter(isOver);
  const jobs = all ? facts.jobs : [...live.slice(0, FEW_LIVE), ...ended.slice(0, FEW_ENDED)];
  const more = (live.length > FEW_LIVE || ended.length > FEW_ENDED) && html`<button type="button" class="small" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "show fewer" : `show ${facts.jobs.length}`}</button>`;
  return html`<${Panel} id="jobs" title=${facts.user === null ? "Jobs" : `Jobs of ${facts.user}`} aside=${more}>
    ${facts.jobs.length
      ? html`<div class="scroll"><table class="jobs">
          <caption class="unseen">Jobs: those that run, those that wait, those that ended</caption>
          <thead><tr><th scope="col">job</th><th scope="col">state</th><th scope="col">model</th><th scope="col">user</th><th scope="col">waited</th><th scope="col">ran</th><th scope="col">tokens</th><th scope="col">where and why</th><th scope="col"><span class="unseen">cancel</span></th></tr></thead>
          <tbody>${jobs.map((job) => html`<${Job} key=${job.id} job=${job} now=${facts.at_ms} run=${run} />`)}</tbody>
        </table></div>`
      : html`<${Empty}>No job yet. Try the playground.<//>`}
  <//>`;
}

const COLOURS = { RUNNING: "live", QUEUED: "", SUCCEEDED: "good", FAILED: "bad", DEAD: "bad", EXPIRED: "warn", CANCELLED: "warn" };

function Job({ job, now, run }) {
  const over = isOver(job);
  const began = job.started_ms ?? job.finished_ms ?? now;
  const why = job.state === "QUEUED" ? job.reason || "in the queue" : [job.node, job.reason].filter(Boolean).join(": ");
  const eta = job.eta_s === null ? "" : job.eta_s < 0.05 ? ", begins now" : `, begins in about ${duration(job.eta_s * 1000)}`;
  return html`<tr>
    <td data-label="job" class="number"><code title=${job.id}>${short(job.id)}</code></td>
    <td data-label="state"><span class=${`pill ${COLOURS[job.state]}`}>${job.cancel_requested && !over ? "cancelling" : job.state.toLowerCase()}</span></td>
    <td data-label="model">${job.model}${job.lane === "bulk" ? html` <span class="quiet">bulk</span>` : ""}</td>
    <td data-label="user" class="user">${job.user}</td>
    <td data-label="waited" class="number">${duration(began - job.submitted_ms)}</td>
    <td data-label="ran" class="number">${job.started_ms ? duration((job.finished_ms ?? now) - job.started_ms) : "–"}</td>
    <td data-label="tokens" class="number">${count(job.tokens)}</td>
    <td data-label="why" class="why">${job.position ? html`<b>place ${count(job.position)}</b>${eta}${why ? ": " : ""}` : ""}${why}</td>
    <td class="act">${over ? "" : html`<${Twice} label="cancel" name=${`Cancel job ${short(job.id)}`} disabled=${job.cancel_requested} act=${() => run(`job ${short(job.id)} is cancelled`, () => cancelJob(job.id))} />`}</td>
  </tr>`;
}

export function Batches({ facts, run }) {
  if (!facts.batches.length) return "";
  return html`<${Panel} id="batches" title="Batches" count=${facts.batches.length}>
    <ul class="rows">
      ${facts.batches.map((batch) => {
        const done = batch.completed + batch.failed;
        const isOpen = ["validating", "in_progress"].includes(batch.status);
        return html`<li class="batch" key=${batch.id}>
          <div class="who"><strong>${batch.id.slice(0, 18)}</strong><span class="quiet">${batch.status.replace("_", " ")}, begun ${duration(facts.at_ms - batch.created_s * 1000)} ago</span></div>
          <progress max=${Math.max(1, batch.total)} value=${done} aria-label=${`Rows of ${batch.id} that are done`}></progress>
          <span class="figure"><b>${count(done)}</b> of ${count(batch.total)}${batch.failed ? `, ${count(batch.failed)} failed` : ""}</span>
          ${isOpen ? html`<span class="acts"><${Twice} label="cancel" name=${`Cancel ${batch.id}`} act=${() => run(`${batch.id} is cancelled`, () => cancelBatch(batch.id))} /></span>` : ""}
        </li>`;
      })}
    </ul>
  <//>`;
}
