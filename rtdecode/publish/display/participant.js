// The participant's page: fixation, a picture or a thermometer. What is late is not shown.
const LATE_MS = 500, SILENT_MS = 1500, AGAIN_MS = 500;
const query = new URLSearchParams(location.search), wanted = query.get("show") ?? "all";
const element = id => document.getElementById(id);
if (query.has("theme")) document.documentElement.dataset.theme = query.get("theme");

// Server and browser tell time by clocks of their own: the least difference ever seen is that of a message without delay.
let least = Infinity, heard = performance.now(), state = {}, lag = 0, loading = 0;

function show(what, trouble) {
  document.body.dataset.shows = what;
  element("trouble").textContent = trouble;
}

function draw() {
  const silent = performance.now() - heard;
  if (silent > SILENT_MS) return show("fixation", "no contact with the page's server");
  if (!state.alive) return show("fixation", "no contact with the session");
  if (lag > LATE_MS) return show("fixation", `late by ${(lag / 1000).toFixed(1)} s`);
  const picture = element("picture"), ready = state.picture && picture.dataset.is === state.picture;
  if (wanted !== "thermometer" && ready) return show("picture", "");
  if (wanted !== "picture" && state.thermometer) {
    const { step, steps, held } = state.thermometer;
    element("thermometer").style.setProperty("--steps", steps);
    element("level").style.height = `${100 * step / steps}%`;
    element("thermometer").ariaValueMax = steps;
    element("thermometer").ariaValueNow = step;
    document.body.toggleAttribute("data-held", held);
    return show("thermometer", "");
  }
  show("fixation", "");
}

async function load(source) {
  const picture = element("picture"), number = ++loading;
  picture.src = source;
  try { await picture.decode(); } catch { return; }  // replaced meanwhile
  if (number === loading) { picture.dataset.is = source; draw(); }
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/participant/stream`);
  socket.onmessage = event => {
    const told = JSON.parse(event.data), apart = performance.now() - told.sent_ms;
    heard = performance.now();
    least = Math.min(least, apart);
    lag = apart - least;
    state = told;
    if (state.picture && state.picture !== element("picture").dataset.is && wanted !== "thermometer") load(state.picture);
    draw();
    document.body.dataset.version = told.version;
  };
  socket.onclose = () => { least = Infinity; setTimeout(connect, AGAIN_MS); };
}

addEventListener("keydown", event => { if (event.key === "f") document.documentElement.requestFullscreen(); });
addEventListener("dblclick", () => document.documentElement.requestFullscreen());
setInterval(draw, 200);
connect();
