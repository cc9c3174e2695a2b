"use strict";
const $ = (id) => document.getElementById(id);
const percent = (x) => `${Math.round(100 * x)}%`;
const MODES = { calibrate: "calibrating", decode: "decoding" };
let lastBeat = 0;
let rows = new Map();

function text(id, value) {
  const node = $(id);
  if (node.textContent !== value) node.textContent = value;
}

function image(node, source) {
  node.hidden = !source;
  if (source && node.getAttribute("src") !== source) node.src = source;
}

const stimulusURL = (trial) => trial.stimulus ? `/stimulus/${encodeURIComponent(trial.stimulus)}` : "";
const pictureURL = (trial) => trial.pictured === undefined ? "" : `/picture/${encodeURIComponent(trial.trial)}/${trial.pictured}`;

function showHeader(state) {
  const { session, run, quality } = state;
  if (!session.state) return;
  text("mode", session.state === "ended" ? "session ended" : MODES[session.mode]);
  const absent = session.absent.length ? `, which makes no ${session.absent.join(" and no ")}` : "";
  text("participant", `participant ${session.participant} · ${session.pack} pack${absent}`);
  if (!run.number) return;
  text("run", `run ${run.number}${run.state === "ended" ? " done" : ""}`);
  const seen = quality.volume === undefined ? 0 : quality.volume + 1;
  $("progress").hidden = !run.expected;
  if (run.expected) $("progress").value = seen / run.expected;
  text("volume", run.expected ? `${seen} / ${run.expected}` : `${seen} volumes`);
}

function showNow(trial) {
  const now = $("now");
  now.classList.toggle("weak", Boolean(trial.weak));
  image($("stimulus"), stimulusURL(trial));
  $("no-stimulus").hidden = Boolean(trial.stimulus);
  text("no-stimulus", trial.condition || "–");
  image($("picture"), pictureURL(trial));
  $("no-picture").hidden = trial.pictured !== undefined;
  const drawn = trial.pictured === undefined ? trial.revision : trial.pictured;
  text("revision", `· revision ${drawn}${trial.final && drawn === trial.revision ? ", final" : ""}`);
  text("caption", trial.caption || "");
  if (trial.evidence === undefined) return;
  $("evidence-fill").style.width = percent(trial.evidence);
  $("chance-mark").style.left = percent(trial.chance);
  text("evidence", trial.weak ? `weak evidence for ${trial.predicted}: ${percent(trial.evidence)}`
    : `${trial.predicted}, ${percent(trial.evidence)} sure`);
  const rank = trial.rank === null ? "" : ` · true picture ranked ${trial.rank} of ${trial.pool}`;
  text("evidence-note", `(chance ${percent(trial.chance)}; noise looks this sure ${percent(trial.p_noise)} of the time)${rank}`);
}

function showWaiting(state) {
  const { session, run, calibration } = state;
  if (session.mode !== "calibrate" || !run.number) return;
  const last = run.number >= session.calibration_runs && run.state === "ended";
  text("caption", last ? "fitting the decoder …" : `calibration run ${run.number} of ${session.calibration_runs}`);
  text("evidence", calibration.trials ? `${calibration.trials} trials collected` : "");
  text("evidence-note", "");
}

function showTrials({ trials, session }) {
  const scored = trials.filter((t) => t.final && session.categories && session.categories.includes(t.condition));
  const hits = scored.filter((t) => t.predicted === t.condition).length;
  text("tally", scored.length ? `· ${hits} of ${scored.length} categories right` : "");
  const list = $("list");
  for (const trial of trials) {
    let row = rows.get(trial.trial);
    if (!row) {
      row = document.createElement("li");
      row.append(document.createElement("img"), document.createElement("span"), document.createElement("span"));
      row.children[0].alt = "";
      row.children[1].append(document.createTextNode(""), document.createElement("small"));
      rows.set(trial.trial, row);
      list.prepend(row);
    }
    const key = `${trial.revision}/${trial.pictured}/${trial.final}/${trial.caption}`;
    if (row.dataset.key === key) continue;
    row.dataset.key = key;
    image(row.children[0], pictureURL(trial));
    row.children[1].firstChild.data = trial.predicted || "";
    row.children[1].lastChild.textContent = `${trial.trial} · ${trial.condition || "?"}${trial.final ? "" : " …"}`;
    row.children[2].textContent = trial.evidence === undefined ? "" : percent(trial.evidence);
    row.className = trial.predicted === trial.condition ? "hit" : "miss";
  }
}

function showSignal(state) {
  const { quality, latency, calibration } = state;
  if (quality.fd_mm !== undefined) {
    text("fd", `· FD ${quality.fd_mm.toFixed(2)} mm · tSNR ${quality.tsnr === null ? "–" : Math.round(quality.tsnr)}${quality.lag ? ` · ${quality.lag} volumes behind` : ""}`);
  }
  const body = $("latency").tBodies[0];
  body.replaceChildren(...Object.entries(latency).map(([name, { p50, p99 }]) => {
    const row = document.createElement("tr");
    for (const value of [name, p50.toFixed(0), p99.toFixed(0)]) row.insertCell().textContent = value;
    return row;
  }));
  $("calibration-title").hidden = calibration.trials === undefined;
  if (calibration.trials !== undefined) {
    const learnt = calibration.percentile === null ? "" :
      `, held-out percentile rank ${percent(calibration.percentile)} [${calibration.interval.map(percent).join(", ")}] (chance 50%)`;
    text("calibration", `${calibration.trials} trials${learnt}${calibration.note ? ` · ${calibration.note}` : ""}`);
  }
  $("curve").hidden = state.curve.length < 2;
  drawCurve(state.curve);
  $("notices").replaceChildren(...state.notices.map((notice) => {
    const item = document.createElement("li");
    item.className = notice.kind;
    item.textContent = `${notice.kind}: ${notice.text}`;
    return item;
  }));
  drawMotion(state.trace);
}

function drawMotion(trace) {
  const canvas = $("motion"), pen = canvas.getContext("2d");
  const { width, height } = canvas, middle = height * 0.42;
  pen.clearRect(0, 0, width, height);
  if (!trace.length) return;
  const series = [[2, "#6fb1ff", 1], [3, "#6fb1ff", 1], [4, "#6fb1ff", 1], [5, "#c58bff", 50], [6, "#c58bff", 50], [7, "#c58bff", 50]];
  let reach = 0.5;
  for (const row of trace) for (const [column, , factor] of series) reach = Math.max(reach, Math.abs(row[column] * factor));
  const x = (i) => 34 + (width - 40) * i / Math.max(60, trace.length - 1);
  const y = (mm) => middle - mm / reach * (middle - 8);
  pen.font = "13px system-ui"; pen.fillStyle = "#93a1b1"; pen.strokeStyle = "#2c3643"; pen.lineWidth = 1;
  for (const mm of [-reach, 0, reach]) {
    pen.fillText(mm.toFixed(1), 2, y(mm) + 5);
    pen.beginPath(); pen.moveTo(34, y(mm)); pen.lineTo(width - 6, y(mm)); pen.stroke();
  }
  pen.lineWidth = 1.6;
  for (const [column, colour, factor] of series) {
    pen.strokeStyle = colour; pen.beginPath();
    trace.forEach((row, i) => pen[i ? "lineTo" : "moveTo"](x(i), y(row[column] * factor)));
    pen.stroke();
  }
  const top = Math.max(0.5, ...trace.map((row) => row[1])), base = height - 4, tall = height - 2 * middle - 8;
  pen.fillStyle = "#f2b84b";
  trace.forEach((row, i) => { const h = row[1] / top * tall; pen.fillRect(x(i) - 1, base - h, 2, h); });
  pen.fillText(top.toFixed(1), 2, base - tall + 10);
}

function drawCurve(curve) {
  const canvas = $("curve"), pen = canvas.getContext("2d");
  const { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  if (curve.length < 2) return;
  const most = curve[curve.length - 1][0];
  const x = (trials) => 44 + (width - 54) * trials / most;
  const y = (share) => height - 10 - (height - 20) * (Math.max(share, 0.4) - 0.4) / 0.6;
  pen.font = "13px system-ui"; pen.fillStyle = "#93a1b1"; pen.strokeStyle = "#2c3643"; pen.lineWidth = 1;
  for (const share of [0.5, 0.75, 1]) {
    pen.fillText(percent(share), 2, y(share) + 5);
    pen.beginPath(); pen.moveTo(44, y(share)); pen.lineTo(width - 6, y(share)); pen.stroke();
  }
  pen.fillStyle = "#5fd38d33"; pen.beginPath();
  curve.forEach(([trials, , low]) => pen.lineTo(x(trials), y(low)));
  [...curve].reverse().forEach(([trials, , , high]) => pen.lineTo(x(trials), y(high)));
  pen.fill();
  pen.strokeStyle = "#5fd38d"; pen.lineWidth = 2; pen.beginPath();
  curve.forEach(([trials, share]) => pen.lineTo(x(trials), y(share)));
  pen.stroke();
}

function show(state) {
  if (state.heartbeat.t) lastBeat = Date.now();
  showHeader(state);
  const current = state.trials[state.trials.length - 1];
  if (current) showNow(current);
  else showWaiting(state);
  showTrials(state);
  showSignal(state);
}

setInterval(() => $("light").classList.toggle("alive", Date.now() - lastBeat < 4000), 500);
const stream = new EventSource("/events");
stream.onmessage = (event) => show(JSON.parse(event.data));
