// Drawings of the page: every canvas at the size it is seen at, with letters of 12 px and more.

import { ink } from "./theme.js";

const TRACES = ["x", "y", "z", "good", "blue", "ink"];
const LEFT = 42, RIGHT = 16, EDGE = 8;
const LEAST_VOLUMES = 60;

/** Clear a canvas and return its pen and size in CSS pixels; null where it is not seen. */
function paper(canvas) {
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
  if (!width || !height) return null;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  return { pen, width, height };
}

function rule({ pen, width }, y, label, colour = ink("line"), dash = []) {
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.moveTo(LEFT, y);
  pen.lineTo(width - RIGHT, y);
  pen.stroke();
  pen.setLineDash([]);
  pen.fillStyle = ink("dim");
  pen.textAlign = "right";
  pen.fillText(label, LEFT - 6, y);
  pen.textAlign = "left";
}

function acrossVolumes({ width }, rows) {
  const first = rows.length ? rows[0][0] : 0, last = rows.length ? rows[rows.length - 1][0] : 0;
  return (volume) => LEFT + (width - LEFT - RIGHT) * (volume - first) / Math.max(LEAST_VOLUMES, last - first);
}

const digits = (reach) => reach < 0.3 ? 2 : 1;

/** Draw columns of the rows around zero, a colour each, named at their right ends. */
export function traces(canvas, rows, columns, { factor = 1, least }) {
  const sheet = paper(canvas);
  if (!sheet) return;
  const { pen, height } = sheet;
  let reach = least;
  for (const row of rows) for (const { column } of columns) reach = Math.max(reach, Math.abs((row[column] || 0) * factor));
  const x = acrossVolumes(sheet, rows), y = (value) => height / 2 - value / reach * (height / 2 - EDGE);
  for (const value of [-reach, 0, reach]) rule(sheet, y(value), value ? value.toFixed(digits(reach)) : "0");
  columns.forEach(({ column, label }, which) => {
    let drawing = false, end = null;
    pen.strokeStyle = pen.fillStyle = colour(which);
    pen.lineWidth = 1.6;
    pen.beginPath();
    for (const row of rows) {
      const value = row[column];
      if (value === null || value === undefined) { drawing = false; continue; }
      end = [x(row[0]), y(value * factor)];
      pen[drawing ? "lineTo" : "moveTo"](...end);
      drawing = true;
    }
    pen.stroke();
    if (end && label.length === 1) pen.fillText(label, end[0] + 4, Math.min(height - 6, Math.max(6, end[1])));
  });
}

/** Draw framewise displacement as bars, those of volumes that are left out in red, and the limit. */
export function displacement(canvas, rows, limit) {
  const sheet = paper(canvas);
  if (!sheet) return;
  const { pen, height, width } = sheet;
  const top = Math.max(0.2, (limit || 0) * 1.25, ...rows.map((row) => row[1] || 0));
  const x = acrossVolumes(sheet, rows), y = (value) => height - EDGE - value / top * (height - 2 * EDGE);
  rule(sheet, y(0), "0");
  if (!limit) rule(sheet, y(top), top.toFixed(digits(top)));
  const bar = Math.max(1, Math.min(4, (width - LEFT - RIGHT) / Math.max(LEAST_VOLUMES, rows.length) - 0.5));
  for (const row of rows) {
    pen.fillStyle = row[2] ? ink("bad") : ink("blue");
    pen.fillRect(x(row[0]) - bar / 2, y(row[1] || 0), bar, y(0) - y(row[1] || 0));
  }
  if (limit) rule(sheet, y(limit), limit.toFixed(digits(limit)), ink("bad"), [5, 4]);
}

/** Draw held-out percentile ranks over trials on an axis from 0 to 100 %, with their interval, chance, what is projected of
 * more trials (as far as there are twice as many as now) and the noise ceiling. */
export function curve(canvas, points, projected = [], ceiling = null) {
  const sheet = paper(canvas);
  if (!sheet) return;
  const { pen, width, height } = sheet;
  const base = height - 22, now = points.length ? points[points.length - 1][0] : 0;
  const ahead = projected.filter(([, trials]) => trials > now && trials <= 2 * now);
  const most = ahead.length ? ahead[ahead.length - 1][1] : now;
  const x = (trials) => LEFT + (width - LEFT - RIGHT) * trials / Math.max(1, most);
  const y = (share) => base - (base - EDGE) * Math.min(1, Math.max(0, share));
  for (const share of [0, 0.25, 0.75, 1]) rule(sheet, y(share), `${100 * share}%`);
  rule(sheet, y(0.5), "50%", ink("dim"), [6, 5]);
  pen.fillText("chance", LEFT + 6, y(0.5) + 10);
  pen.textAlign = "right";
  pen.fillText(most ? `${most} trials` : "trials", width - RIGHT, height - 8);
  pen.textAlign = "left";
  if (!points.length) return;
  if (ceiling !== null && ceiling !== undefined) {
    rule(sheet, y(ceiling), "", ink("dim"), [2, 4]);
    pen.fillText("noise ceiling", LEFT + 6, y(ceiling) + 10);
  }
  if (ahead.length) {
    const [, share] = points[points.length - 1], rows = [[0, now, share, share, share], ...ahead];
    pen.fillStyle = `${ink("good")}20`;
    pen.beginPath();
    for (const [, trials, , low] of rows) pen.lineTo(x(trials), y(low));
    for (const [, trials, , , high] of [...rows].reverse()) pen.lineTo(x(trials), y(high));
    pen.fill();
    pen.strokeStyle = ink("good");
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 5]);
    pen.beginPath();
    for (const [, trials, expected] of rows) pen.lineTo(x(trials), y(expected));
    pen.stroke();
    pen.setLineDash([]);
  }
  pen.fillStyle = `${ink("good")}40`;
  pen.beginPath();
  for (const [trials, , low] of points) pen.lineTo(x(trials), y(low));
  for (const [trials, , , high] of [...points].reverse()) pen.lineTo(x(trials), y(high));
  pen.fill();
  pen.strokeStyle = pen.fillStyle = ink("good");
  pen.lineWidth = 2;
  pen.beginPath();
  for (const [trials, share] of points) pen.lineTo(x(trials), y(share));
  pen.stroke();
  const [trials, share, low, high] = points[points.length - 1];
  pen.beginPath();
  pen.moveTo(x(trials), y(low));
  pen.lineTo(x(trials), y(high));
  pen.stroke();
  pen.beginPath();
  pen.arc(x(trials), y(share), 4, 0, 2 * Math.PI);
  pen.fill();
}

/** Return the colour of the n-th trace. */
export const colour = (which) => ink(TRACES[which % TRACES.length]);
