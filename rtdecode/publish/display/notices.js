// What is wrong, at the top of the page, until acknowledged or mended.
import { $, clock, made, text } from "./dom.js";
import { ask } from "./stream.js";

const SIGNS = { fault: "▲", skipped: "●" };

/** Acknowledge the first of what is wrong. */
export const acknowledgeFirst = () => $("notices").querySelector("button:enabled")?.click();

function row(key, notice) {
  const item = made("li", notice.kind);
  const times = notice.count > 1 ? ` (${notice.count} times, first at ${clock(notice.first_s)})` : "";
  const what = made("div", "what");
  what.append(made("b", "", `${notice.title}: `), notice.reason, made("span", "remedy", times));
  const advice = [notice.remedy, notice.degraded && `Until then: ${notice.degraded}`].filter(Boolean).join(" · ");
  if (advice) what.append(made("br"), made("span", "remedy", advice));
  what.title = `${notice.title}: ${notice.reason}${times}\n${advice}`;
  const button = made("button", "", "Acknowledge");
  button.type = "button";
  button.addEventListener("click", () => { button.disabled = true; ask("acknowledge", { key, number: notice.number, count: notice.count }); });
  item.append(made("span", "sign", SIGNS[notice.kind]), made("time", "", clock(notice.latest_s)), what, button);
  return item;
}

/** Show new notices as rows that can be acknowledged, the others in a list that opens on demand. */
export function showNotices({ key, notices }) {
  const told = JSON.stringify([key, notices]);
  if ($("notices").dataset.told === told) return;  // a button under the pointer stays the same button
  $("notices").dataset.told = told;
  $("notices").replaceChildren(...notices.new.map((notice) => row(key, notice)));
  $("earlier").hidden = !notices.earlier.length;
  text("earlier-count", `${notices.earlier.length} known`);
  $("earlier-list").replaceChildren(...notices.earlier.map((notice) =>
    made("li", "", `${clock(notice.latest_s)} ${notice.title}: ${notice.reason}${notice.count > 1 ? ` (${notice.count} times)` : ""} · ` +
      (notice.over ? "over" : "acknowledged"))));
}
