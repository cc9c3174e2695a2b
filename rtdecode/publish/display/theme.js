// Light or dark: as the browser says, unless the address (?theme=light) or the switch says otherwise; the switch is remembered.
import { $ } from "./dom.js";

const KEPT = "rtdecode-theme";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const inks = { dark: {}, light: {} };

const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");

function changed() {
  $("theme").setAttribute("aria-pressed", String(shown() === "light"));
  window.dispatchEvent(new Event("resize"));  // drawings are drawn anew
}

/** Return a colour of the stylesheet by its name. */
export function ink(name) {
  return inks[shown()][name] ??= getComputedStyle(root).getPropertyValue(`--${name}`).trim();
}

/** Show the other theme. */
export function switchTheme() {
  root.dataset.theme = shown() === "light" ? "dark" : "light";
  localStorage.setItem(KEPT, root.dataset.theme);
  changed();
}

const asked = new URLSearchParams(location.search).get("theme") ?? localStorage.getItem(KEPT);
if (asked === "light" || asked === "dark") root.dataset.theme = asked;
dark.addEventListener("change", changed);
$("theme").addEventListener("click", switchTheme);
changed();
