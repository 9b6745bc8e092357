/** The keys of a view beside the chat. */

/**
 * Ctrl- or ⌘-Enter runs, Escape stops.
 * @param {KeyboardEvent} event
 * @param {{busy: boolean, ready: boolean, run: () => void, stop: () => void}} view
 */
export function onKeys(event, { busy, ready, run, stop }) {
  if (event.isComposing) return;
  const act = event.key === "Escape" && busy ? stop : event.key === "Enter" && (event.ctrlKey || event.metaKey) && ready && !busy ? run : null;
  if (!act) return;
  event.preventDefault();
  act();
}
