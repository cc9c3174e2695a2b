// Three trials of feedback.
import { Rtdecode } from "./rtdecode.js";

const RUN = 1, TRIALS = 3, screen = document.getElementById("screen");
let taken = () => {};
const rtdecode = new Rtdecode(["feedback"], message => taken(message), silent => { if (silent) screen.textContent = "+"; });

async function trial(number, seen) {
  const name = `r01t0${number}`, onset = performance.now() / 1000;
  const fed = new Promise(resolve => {
    taken = message => { if (message.trial === name && message.state === "shown") resolve(message); };
  });
  await rtdecode.request("event", { kind: "trial", run: RUN, trial: name, onset_s: onset, duration_s: 2, condition: `seen-${seen}` });
  const message = await fed;
  screen.textContent = `step ${message.step} of ${message.steps}`;
  return message.step;
}

await rtdecode.request("event", { kind: "run_start", run: RUN });
let seen = 0;
for (let number = 0; number < TRIALS; number++) seen = await trial(number, seen);
await rtdecode.request("event", { kind: "run_end", run: RUN });
document.title = "done";
