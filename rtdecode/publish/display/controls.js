// The operator's commands: chosen, confirmed, asked of the daemon, and its answer in words; and the keys of the page.
import { $, clock, text } from "./dom.js";
import { acknowledgeFirst } from "./notices.js";
import { ask } from "./stream.js";
import { switchTheme } from "./theme.js";

const COMMANDS = {
  pause: { says: "Pause decoding", means: "Trials that become due are not decoded, and say so. Volumes are recorded and estimated as before.",
    done: () => "Decoding is paused." },
  resume: { says: "Resume decoding", means: "Trials that become due from now on are decoded again.", done: () => "Decoding goes on." },
  bad_run: { says: "Mark the run as bad", means: "Its trials do not calibrate, are not decoded, and are invalid in the tables. This cannot be taken back.",
    fields: ["run"], done: ({ run }) => `Run ${run} is marked as bad.` },
  recalibrate: { says: "Recalibrate from now", means: "Trials up to now no longer calibrate, those of the next runs do. Until there is another decoder, trials are decoded as before.",
    fields: ["runs"], done: (_, { run, onset_s, last_run }) => `Trials calibrate from run ${run}, ${Math.round(onset_s)} s on, to the end of run ${last_run}.` },
  feedback: { says: "Change the feedback", means: "What is given holds from now on; what is left empty stays as it is.", fields: ["target", "threshold", "half_life_s"],
    done: (given) => `Feedback: ${Object.entries(given).map(([name, value]) => `${name.replace("_s", "").replace("_", " ")} ${value}`).join(", ")}.` },
  stop: { says: "Stop the session", means: "The session is ended in order: what has come is finished, tables are written. Volumes that are exported later are not recorded.",
    done: () => "The session is ending." },
};
const KEYS = { p: () => choose(paused ? "resume" : "pause"), b: () => choose("bad_run"), r: () => choose("recalibrate"), f: () => choose("feedback"),
  e: () => choose("stop"), c: () => open(), a: acknowledgeFirst, t: switchTheme };

let chosen = null, paused = false, allowed = false, told = { run: {}, feedback: {}, categories: [], session: "" };

/** Keep to what can be asked now. */
export function showControls({ session, run, feedback }, now, reached) {
  const [name, role] = now.operator, running = session.state !== undefined && session.state !== "ended";
  told = { run, feedback, categories: session.categories || [], session: session.identifier };
  paused = Boolean(session.paused);
  allowed = role === "operate" && reached && running;
  $("controls").dataset.may = role === "operate" ? "steer" : "watch";
  text("controls-who", role !== "operate" ? `This page only watches: its key ${name} has the role ${role}. To steer from here, start it with a key of the role operate (rtdecode keys new NAME --role operate).`
    : !reached ? "There is no contact with the daemon." : !running ? "There is no session to steer."
      : `Every command is confirmed, and kept in the session's journal${name ? ` (key ${name})` : ""}.`);
  for (const button of $("commands").children) button.disabled = !allowed || !possible(button.dataset.command);
  $("confirm-yes").disabled = !allowed || $("controls").dataset.asking === "yes";
}

function possible(command) {
  return { pause: !paused, resume: paused, bad_run: Boolean(told.run.number), feedback: told.feedback.score !== undefined }[command] ?? true;
}

/** Return the fields of a command; of the feedback those that its score has. */
function asked(command) {
  const { fields = [] } = COMMANDS[command], ofRegions = told.feedback.regions?.length > 0;
  return fields.filter((name) => name !== (ofRegions ? "target" : "half_life_s"));
}

function open() {
  if (!$("controls").open) $("controls").showModal();
  back();
}

function back() {
  chosen = null;
  $("commands").hidden = false;
  $("confirm").hidden = true;
  ($("commands").querySelector("button:enabled") || $("controls-close")).focus();
}

function choose(command) {
  open();
  if (!allowed || !possible(command)) return;
  // asked again with its token, it is not carried out twice; confirmed after the next session began, it is refused
  chosen = { command, session: told.session, token: crypto.randomUUID() };
  const { says, means } = COMMANDS[command], fields = asked(command);
  text("confirm-says", `${says}?`);
  text("confirm-means", means);
  text("confirm-yes", says);
  text("outcome", "");
  for (const label of $("confirm").querySelectorAll("label[data-field]")) {
    label.hidden = !fields.includes(label.dataset.field);
    label.querySelector("input").disabled = label.hidden;  // else what it lacks would hold the command back, unseen
  }
  $("confirm").reset();
  $("field-run").value = told.run.number || "";
  $("categories-known").replaceChildren(...told.categories.map((name) => new Option(name, name)));
  $("field-target").placeholder = told.feedback.target || "";
  $("field-threshold").placeholder = told.feedback.threshold ?? "";
  $("commands").hidden = true;
  $("confirm").hidden = false;
  const first = $("confirm").querySelector("label:not([hidden])[data-field] input");
  (first || $("confirm-yes")).focus();
  first?.select();
}

/** Return the fields of the chosen command that are filled in, numbers as such. */
function given() {
  const found = {};
  for (const name of asked(chosen.command)) {
    const field = $(`field-${name}`);
    if (field.value.trim()) found[name] = field.type === "number" ? field.valueAsNumber : field.value.trim();
  }
  return found;
}

async function carryOut(event) {
  event.preventDefault();
  const { command, session, token } = chosen, fields = given(), what = { ...fields, reason: $("reason").value.trim(), session, token };
  $("controls").dataset.asking = "yes";
  $("confirm-yes").disabled = true;
  outcome("asking", "Asking the daemon …");
  const answer = command === "recalibrate" ? await ask("mode", { mode: "calibrate", ...what }) : await ask("control", { command, ...what });
  $("controls").dataset.asking = "";
  $("confirm-yes").disabled = !allowed;
  if (answer.ok) {
    outcome("done", `${clock(Date.now() / 1000)} ${COMMANDS[command].done(fields, answer)}`);
    if (chosen?.token === token) back();
  } else if (answer.code === "timeout") {
    outcome("refused", `No answer: ${answer.error}. It may have been carried out. Asking again is safe: it is not carried out twice.`);
  } else {
    outcome("refused", `Refused: ${answer.error}`);
    if (chosen?.token === token) chosen.token = crypto.randomUUID();
  }
}

function outcome(kind, words) {
  $("outcome").dataset.kind = kind;
  text("outcome", words);
}

function pressed(event) {
  const writing = event.target.closest?.("input, textarea, select");
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || writing || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
}

$("open-controls").addEventListener("click", open);
$("controls-close").addEventListener("click", () => $("controls").close());
$("confirm-no").addEventListener("click", back);
$("confirm").addEventListener("submit", carryOut);
for (const button of $("commands").children) button.addEventListener("click", () => choose(button.dataset.command));
document.addEventListener("keydown", pressed);
