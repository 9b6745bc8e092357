/** The API key: asked for once, and kept for this browser tab only. */

import { html, useEffect, useRef, useState } from "../vendor/preact.js";

const NAME = "eft-api-key";

export const storedKey = () => sessionStorage.getItem(NAME);

/** Lets several requests wait for one answer: `ask` opens the dialog, `answer` resolves them all. */
export function createAsking(store) {
  let waiting = null;
  let answered = null;
  return {
    ask(failure) {
      if (!waiting) {
        waiting = new Promise((resolve) => (answered = resolve));
        store.set({ asking: { message: storedKey() ? failure.message : "" } });
      }
      return waiting;
    },
    answer(key) {
      if (key) sessionStorage.setItem(NAME, key);
      store.set({ asking: null });
      answered?.(Boolean(key));
      waiting = null;
    },
  };
}

/** The dialog. */
export function KeyDialog({ asking, onAnswer }) {
  const dialog = useRef(null);
  const [key, setKey] = useState("");
  useEffect(() => {
    if (asking) dialog.current.showModal();
    else dialog.current.close();
  }, [asking]);
  return html`<dialog ref=${dialog} class="dialog" aria-labelledby="key-title" onCancel=${() => onAnswer(null)}>
    <form
      method="dialog"
      onSubmit=${(event) => {
        event.preventDefault();
        if (key.trim()) onAnswer(key.trim());
      }}
    >
      <h2 id="key-title">API key</h2>
      <p>This server answers those who have one of its API keys. The key stays in this browser tab and is forgotten with it.</p>
      ${asking?.message && html`<p class="failure" role="alert">${asking.message}</p>`}
      <label class="field">
        Key
        <input
          type="password"
          data-testid="key-input"
          autocomplete="off"
          spellcheck="false"
          value=${key}
          onInput=${(event) => setKey(event.target.value)}
        />
      </label>
      <p class="row end">
        <button type="button" onClick=${() => onAnswer(null)}>Cancel</button>
        <button type="submit" class="primary" data-testid="key-save">Use this key</button>
      </p>
    </form>
  </dialog>`;
}
