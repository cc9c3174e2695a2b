// Small helpers of the page. All that comes from the stream is written as text, never as markup.

export const $ = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(100 * share)}%`;

/** Write a text, if it is another one. */
export function text(id, value) {
  const node = $(id);
  if (node.textContent !== value) node.textContent = value;
}

/** Show a picture, or nothing where there is none or it cannot be had; `words` stand in for it. */
export function image(node, source, words) {
  const wanted = source || "";
  if (node.dataset.wanted !== wanted) {
    node.dataset.wanted = wanted;
    node.hidden = true;
    node.removeAttribute("src");
    node.onload = () => { node.hidden = false; if (words) words.hidden = true; };
    node.onerror = () => { node.hidden = true; if (words) words.hidden = false; };
    if (words) words.hidden = false;
    if (wanted) node.src = wanted;
  }
}

/** Return a new element with a class and a text. */
export function made(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

/** Return the time of day of seconds since 1970. */
export function clock(seconds) {
  if (!seconds) return "";
  return new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour12: false });
}

/** Return a duration in words. */
export function lasting(seconds) {
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}
