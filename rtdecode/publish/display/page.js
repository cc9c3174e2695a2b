// The operator's page: draws the state that its server sends, and says so when that state is old.
import { colour, curve, displacement, traces } from "./charts.js";
import { showControls } from "./controls.js";
import { $, clock, image, lasting, made, percent, text } from "./dom.js";
import { showNotices } from "./notices.js";
import { follow } from "./stream.js";

const CLAIM = 20;  // as rtdecode.decode.score has them
const SERVER_S = 3;  // the server speaks once a second
const LAMPS = { calibrating: "good", fitting: "good", decoding: "good", watching: "good", "first-volume": "good", ending: "good", resuming: "good",
  fault: "trouble", "no-volume": "trouble", paused: "trouble", lost: "lost" };
const OPEN = new Set(["fault", "no-volume", "paused", "ending", "resuming"]);
let latest = null, due = false, redraw = false;
const changed = new Set();
let heard = { at: performance.now(), wall: Date.now() / 1000 };
let shownKey = "";
const rows = new Map();

const stimulusURL = (name) => name ? `/stimulus/${encodeURIComponent(name)}` : "";
const pictureURL = (key, trial) => trial.picture === undefined ? "" : `/picture/${encodeURIComponent(key)}/${trial.picture}`;

function showHeader({ session, run, quality }, now) {
  const running = session.state !== undefined;
  const absent = running && session.absent.length ? `, makes no ${session.absent.join(" and no ")}` : "";
  text("participant", running ? `participant ${session.participant} · ${session.pack} pack${absent}` : "");
  const of = running && session.mode === "calibrate" && run.number <= session.calibration_runs ? ` of ${session.calibration_runs}` : "";
  text("run", run.number ? `run ${run.number}${of}${run.state === "ended" ? " done" : ""}` : "");
  const seen = quality.volume === undefined ? 0 : quality.volume + 1;
  $("progress").hidden = !run.expected;
  $("progress").value = run.expected ? Math.min(1, seen / run.expected) : 0;
  text("volume", !run.number ? "" : run.expected ? `${seen} / ${run.expected}` : `${seen} volumes`);
  $("flags").replaceChildren(...[
    session.paused && now.phase !== "paused" && "paused",
    session.bad_runs?.includes(run.number) && "bad run",
    run.state !== "ended" && quality.lag > 0 && `${quality.lag} ${quality.lag > 1 ? "volumes" : "volume"} behind`,
  ].filter(Boolean).map((words) => made("span", "flag", words)));
  text("age", now.volume_age_s === null || now.phase === "no-volume" ? "" : `last volume ${lasting(now.volume_age_s)} ago`);
}

function showPhase(now, unreachable) {
  const phase = unreachable ? "lost" : now.phase;
  document.body.dataset.phase = phase;
  document.body.dataset.lamp = LAMPS[phase] || "quiet";
  document.body.classList.toggle("stale", ["lost", "waiting", "asking"].includes(phase));
  const since = phase === "no-volume" && now.volume_age_s !== null ? ` for ${lasting(now.volume_age_s)}` : "";
  text("says", unreachable ? "no contact with the page's server" : `${now.says}${since}`);
  document.title = `${$("says").textContent} · rtdecode`;
  text("does", OPEN.has(phase) && now.does && now.doing !== "asking" ? `· ${now.does}` : "");
  const banner = $("banner");
  banner.hidden = phase !== "lost";
  if (unreachable) {
    text("banner", `No contact with the page's server since ${clock(heard.wall)} (${lasting((performance.now() - heard.at) / 1000)}). ` +
      "What is below is old. Start it again: rtdecode display");
  } else if (phase === "lost") {
    text("banner", `No contact with the daemon since ${clock(now.contact.since_s)} (${lasting(now.contact.age_s)}). What is below is old.`);
  }
}

function showIdle({ session, key }, now) {
  const ready = session.state !== undefined;
  text("idle-says", now.says.charAt(0).toUpperCase() + now.says.slice(1));
  text("idle-help", ready ? `Participant ${session.participant}, ${session.pack} pack. The first volume that is exported starts run 1.`
    : now.phase === "asking" ? "" : "Start it with: rtdecode run session.toml");
}

const ADVICE = { "go on": "Go on.", enough: "Enough.", "no signal": "No signal." };

/** Say what else is known of a calibration than its percentile rank. */
function standing({ top1: [first, chance], two_way, ceiling, projected }) {
  const ten = projected.find(([minutes]) => minutes === 10);
  return [
    first !== null ? `first ${percent(first)} (chance ${percent(chance)})` : "",
    two_way !== null ? `two-way ${percent(two_way)}` : "",
    ceiling !== null ? `noise ceiling ${percent(ceiling)}` : "",
    ten ? `in 10 minutes ${percent(ten[2])} [${percent(ten[3])}, ${percent(ten[4])}]` : "",
  ].filter(Boolean).join(" · ");
}

/** Say, beside what is decoded, where a calibration stands that goes on. */
function showMeanwhile({ calibration, session, run }) {
  const share = calibration.percentile, goesOn = calibration.trials && run.number <= session.calibration_runs;
  $("meanwhile").hidden = !goesOn;
  text("meanwhile", !goesOn ? "" : [
    `calibration goes on: ${calibration.trials} trials`,
    share !== null && share !== undefined ? `percentile rank ${percent(share)}` : "",
    calibration.advice && `${ADVICE[calibration.advice] || ""} ${calibration.why}`,
  ].filter(Boolean).join(" · "));
}

function showCalibration({ calibration, collected, left_out, stimulus, session, curve: points }, now) {
  image($("calibration-stimulus"), stimulusURL(stimulus.stimulus), $("calibration-name"));
  text("calibration-name", stimulus.stimulus || stimulus.category || "no trial yet");
  text("calibration-shown", stimulus.trial === undefined ? "the last picture shown"
    : `last shown: ${[stimulus.stimulus, stimulus.category].filter(Boolean).join(", ")}`);
  const share = calibration.percentile;
  const known = share !== null && share !== undefined;
  text("rank", known ? percent(share) : "–");
  text("rank-note", known ? `percentile rank${calibration.interval.length ? ` [${calibration.interval.map(percent).join(", ")}]` : ""}, chance 50%`
    : "known after the first trials");
  text("retrieval", known ? standing(calibration) : "");
  const advice = ADVICE[calibration.advice];
  $("advice").hidden = !advice;
  $("advice").dataset.advice = calibration.advice || "";
  text("advice-word", advice || "");
  text("advice-why", calibration.why || "");
  text("note", calibration.note || (now.doing === "fitting" ? "All calibration runs are there; the decoder is being fitted." : ""));
  curve($("curve"), points, calibration.projected, calibration.ceiling);
  const total = collected.reduce((sum, [, count]) => sum + count, 0), most = Math.max(1, ...collected.map(([, count]) => count));
  text("collected", `· ${total}${left_out ? `, ${left_out} left out` : ""}`);
  $("counts").replaceChildren(...collected.map(([name, count]) => {
    const item = made("li"), bar = made("progress");
    bar.max = most;
    bar.value = count;
    bar.setAttribute("aria-label", name);
    item.append(made("span", "", name), bar, made("span", "", String(count)));
    item.title = name;
    return item;
  }));
}

function showMatch({ match }) {
  const last = match.points[match.points.length - 1] || [], known = !match.invalid && last[1] !== null;
  text("match-z", known ? `z ${last[1].toFixed(1)}` : "–");
  const late = match.offset_s ? `began ${match.offset_s.toFixed(1)} s later than announced` : "";
  const claim = `evidence that it is followed ${Number(match.claim.toPrecision(2))}${match.claim >= CLAIM ? " (it is)" : ` of ${CLAIM}`}`;
  const asks = match.asks ? `the protocol asks: ${match.asks}` : "";
  text("match-note", [asks, match.invalid || `better than ${percent(last[2])} of other times of the film, chance 50%`, `${match.film}, last ${match.window} volumes`,
    `${match.parcels} parcels`, match.calibrated ? "calibrated" : "not calibrated", late, claim].filter(Boolean).join(" · "));
  text("match-networks", Object.entries(match.networks).map(([name, z]) => `${name} ${z === null ? "–" : z.toFixed(1)}`).join(" · "));
  traces($("match"), match.points, [{ column: 1, label: "z" }], { least: 4 });
}

const showPicture = (trial, { key }) => image($("picture"), pictureURL(key, trial), $("no-picture"));

function showTrial(trial, { key, session }) {
  const absent = session.absent && session.absent.includes("picture");
  $("decoding").classList.toggle("weak", trial.supported === false);
  image($("stimulus"), stimulusURL(trial.stimulus), $("no-stimulus"));
  text("no-stimulus", trial.stimulus || trial.condition || (trial.trial ? "not known" : ""));
  showPicture(trial, { key });
  text("no-picture", trial.invalid ? "no result" : absent ? `the ${session.pack} pack makes no pictures` : trial.trial ? "no picture yet" : "");
  const drawn = trial.pictured === undefined ? trial.revision : trial.pictured;
  text("revision", trial.revision === undefined ? "" : `· revision ${drawn}${trial.final && drawn === trial.revision ? ", final" : ""}`);
  const known = trial.evidence !== undefined && !trial.invalid;
  const guessed = known && trial.unknown.includes("category");
  const said = trial.caption || (known ? trial.predicted : trial.trial ? "" : "waiting for the first trial");
  text("caption", trial.invalid ? `no result: ${trial.invalid}` : `${guessed ? "best guess: " : ""}${said}`);
  $("evidence-fill").style.width = known ? percent(trial.evidence) : "0";
  $("evidence-fill").parentNode.hidden = !known;
  $("chance-mark").style.left = known ? percent(trial.chance) : "0";
  text("evidence", !known ? "" : trial.supported ? `${guessed ? "category unknown, best guess " : ""}${trial.predicted}, ${percent(trial.evidence)} sure`
    : `not supported${trial.refused ? `: ${trial.refused}` : ""}`);
  const plausible = !known || !trial.plausible.length ? "" : ` · one of these 9 times in 10: ${trial.plausible.join(", ")}`;
  const parts = known ? trial.unknown.filter((name) => name !== "category") : [];
  const unknown = parts.length ? ` · not supported by the response: ${parts.join(", ")}` : "";
  const claim = !known || trial.claim === null ? "" : ` · session evidence ${Number(trial.claim.toPrecision(2))}${trial.claim >= CLAIM ? " (it decodes)" : ` of ${CLAIM}`}`;
  const rank = !known || trial.rank === null ? "" : ` · true picture ranked ${trial.rank} of ${trial.pool}`;
  const figures = Object.entries(trial.figures || {}).map(([label, value]) => ` · ${label} ${typeof value === "number" ? Number(value.toPrecision(2)) : value}`).join("");
  text("evidence-note", known ? `(chance ${percent(trial.chance)}; a response without a picture passes for one this often: ${percent(trial.p_content)})${unknown}${plausible}${claim}${rank}${figures}` : "");
}

function showTrials({ trials, tally, key }) {
  text("tally", tally ? `· ${tally[0]} of ${tally[1]} categories right` : "");
  const list = $("list"), there = new Set(trials.map((trial) => trial.trial));
  for (const [name, row] of rows) if (!there.has(name)) { row.remove(); rows.delete(name); }
  for (const trial of trials) {
    let row = rows.get(trial.trial);
    if (!row) {
      row = made("li");
      const thumb = made("div", "thumb"), picture = made("img"), name = made("div", "name");
      picture.alt = "";
      thumb.append(picture, made("span", "", "–"));
      name.append(made("b"), made("small"), made("small", "revisions"));
      row.append(thumb, name, made("span", "sure"));
      rows.set(trial.trial, row);
      list.prepend(row);
    }
    if (row.told === trial) continue;  // a trial that has changed is another object
    row.told = trial;
    const [thumb, name, sure] = row.children;
    image(thumb.firstChild, pictureURL(key, trial), thumb.lastChild);
    const known = trial.predicted !== undefined && !trial.invalid, hit = known && trial.condition && trial.predicted === trial.condition;
    const [first, which, revisions] = name.children;
    first.textContent = trial.invalid ? "no result" : known ? `${hit ? "✓ " : ""}${trial.predicted}${trial.unknown.includes("category") ? "?" : ""}` : "…";
    which.textContent = `${trial.trial}${trial.condition ? ` · ${trial.condition}` : ""}${trial.final ? "" : " …"}`;
    revisions.replaceChildren(...(trial.revisions || []).map(([number, predicted, evidence, supported], which, all) => {
      const same = which && all[which - 1][1] === predicted, certain = supported ? percent(evidence) : "–";
      const one = made("span", supported ? "supported" : "", `${which ? "→ " : ""}${same ? "" : `${predicted} `}${certain}`);
      one.title = `revision ${number}: ${predicted}, ${supported ? `${certain} sure` : "not supported"}`;
      return one;
    }));
    sure.textContent = !known ? "" : trial.supported ? percent(trial.evidence) : "–";
    row.className = trial.invalid ? "none" : hit ? "hit" : "miss";
    row.title = trial.invalid || trial.caption || "";
  }
}

/** Say what the participant is to be shown of the score. */
function fed({ score, regions, target, state, value, step, steps, threshold, reached }) {
  if (!score) return "";
  const about = [...regions, target].filter(Boolean).join(" − ");
  const goal = threshold === null ? "" : `, threshold ${threshold}${reached ? " reached" : ""}`;
  return `feedback ${score}${about ? ` of ${about}` : ""}: ${state === "baseline" ? "baseline" : step === null ? "nothing new, held" : `step ${step} of ${steps}`}${value === null ? "" : ` (${value.toFixed(2)})`}${goal}`;
}

function showSignals({ trace, regions, quality, latency, session, feedback }) {
  const limit = session.censor_fd_mm || 0, known = quality.fd_mm !== undefined && quality.fd_mm !== null;
  const leftOut = trace.filter((row) => row[2]).length;
  text("fd", `${known ? `${quality.fd_mm.toFixed(2)} ` : ""}${limit ? `· limit ${limit} ` : ""}mm`);
  const axes = (from) => ["x", "y", "z"].map((label, i) => ({ column: from + i, label }));
  traces($("translation"), trace, axes(3), { least: 0.2 });
  traces($("rotation"), trace, axes(6), { least: 0.2, factor: 180 / Math.PI });
  displacement($("displacement"), trace, limit);
  $("regions-chart").hidden = !regions.length;
  if (regions.length) {
    $("regions-key").replaceChildren(...regions.map((name, which) => {
      const key = made("span", "key", name);
      key.style.color = colour(which);
      return key;
    }));
    traces($("regions"), trace, regions.map((label, i) => ({ column: 9 + i, label })), { least: 0.5 });
  }
  const took = Object.entries(latency).map(([name, { p50, p99 }]) => `${name} ${p50.toFixed(0)} (p99 ${p99.toFixed(0)})`).join(" · ");
  text("figures", [
    `tSNR ${typeof quality.tsnr === "number" ? Math.round(quality.tsnr) : "–"}`,
    leftOut ? `${leftOut} of ${trace.length} volumes left out: the head moved` : "",
    fed(feedback),
    took ? `median ms from volume to: ${took}` : "",
  ].filter(Boolean).join("  ·  "));
}

const VIEWS = {
  watching: [[["match"], showMatch]],
  calibrating: [[["calibration", "collected", "left_out", "stimulus", "session", "curve"], showCalibration]],
  decoding: [
    [["trials", "session"], (board) => showTrial(board.trials[board.trials.length - 1] || {}, board)],
    [["trials", "tally"], showTrials],
    [["calibration", "session", "run"], showMeanwhile],
  ],
};

/** Draw what has changed of the board since the last time. */
function draw() {
  due = false;
  const { board, now } = latest;
  if (board.key !== shownKey) {  // another session: nothing of the last one stays
    shownKey = board.key;
    rows.clear();
    $("list").replaceChildren();
    $("earlier").open = false;
    redraw = true;
  }
  const decoding = board.trials.length > 0 || (board.session.mode === "decode" && !board.calibration.trials);
  const film = board.match.film !== undefined;
  const view = !board.run.number ? "idle" : film ? "watching" : decoding ? "decoding" : "calibrating";
  redraw ||= document.body.dataset.view !== view || now.doing !== draw.doing;
  document.body.dataset.view = view;
  draw.doing = now.doing;
  const touched = (names) => redraw || names.some((name) => changed.has(name));
  showHeader(board, now);
  if (touched(["notices"])) showNotices(board);
  if (view === "idle") showIdle(board, now);
  else if (touched(["trace", "regions", "quality", "latency", "session", "feedback"])) showSignals(board);
  for (const [names, show] of VIEWS[view] || []) if (touched(names)) show(board, now);
  changed.clear();
  redraw = false;
}

function soon() {
  if (due || !latest) return;
  due = true;
  requestAnimationFrame(draw);
}

function check() {
  const unreachable = performance.now() - heard.at > 1000 * SERVER_S;
  if (!latest && !unreachable) return;
  showPhase(latest ? latest.now : {}, unreachable);
  if (latest) showControls(latest.board, latest.now, !unreachable && latest.now.contact.alive);
}

follow((board, now, parts) => {
  latest = { board, now };
  heard = { at: performance.now(), wall: Date.now() / 1000 };
  for (const part of parts) changed.add(part);
  if (changed.has("trials") && board.trials.length) showPicture(board.trials[board.trials.length - 1], board);  // asked for a frame sooner
  check();
  soon();
});
setInterval(check, 500);
document.addEventListener("visibilitychange", check);
window.addEventListener("resize", () => { redraw = true; soon(); });
