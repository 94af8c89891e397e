// What every part of the page is made of: `html` templates, panels, and buttons that do something to the fleet.
//
// Values in a template become text nodes and attributes, never HTML, so whatever a model or a user is called is shown
// as it is written. Nothing here may ever use innerHTML; the page's security policy would stop it, too.

import { h } from "preact";
import { useEffect, useState } from "preact/hooks";
import htm from "htm";

export const html = htm.bind(h);

/** A titled part of the page. `aside` stands at the right of its title. */
export function Panel({ id, title, count, aside, children }) {
  return html`<section class="panel" id=${id} aria-labelledby=${id + "-title"}>
    <header><h2 id=${id + "-title"}>${title}${count === undefined ? "" : html` <span class="count">${count}</span>`}</h2>${aside}</header>
    ${children}
  </section>`;
}

/** Said where there is nothing to show. */
export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

/** A button for what cannot be undone: pressed once it asks, pressed again within 4 s it does. */
export function Twice({ label, name, act, disabled }) {
  const [asks, setAsks] = useState(false);
  useEffect(() => {
    if (!asks) return undefined;
    const timer = setTimeout(() => setAsks(false), 4000);
    return () => clearTimeout(timer);
  }, [asks]);
  const press = () => { setAsks(!asks); if (asks) act(); };
  return html`<button type="button" class=${asks ? "small sure" : "small"} disabled=${disabled} onClick=${press}
    aria-label=${asks ? `Really: ${name}` : name}>${asks ? "really?" : label}</button>`;
}

/** A button that does something at once. */
export const Once = ({ label, name, act, disabled }) => html`<button type="button" class="small" disabled=${disabled}
  onClick=${act} aria-label=${name}>${label}</button>`;
