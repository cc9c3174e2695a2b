// Three blocks of feedback in jsPsych 8: a trial of the type `Block` lasts until the last volume of its block.
import { Rtdecode } from "./rtdecode.js";

const RUN = 1, T_R_S = 1.5;
const BLOCKS = 3, FIRST = 8, VOLUMES = 8, EVERY = 14; // volumes before the first block, in each, and from one to the next
let taken = () => {}, seen = 0, shown = "+";
const rtdecode = new Rtdecode(["feedback"], message => taken(message));
const announce = fields => rtdecode.request("event", { run: RUN, ...fields });

class Block {
  static info = { name: "block", version: "1", parameters: { block: { type: jsPsychModule.ParameterType.INT } }, data: {} };

  constructor(jsPsych) { this.jsPsych = jsPsych; }

  async trial(screen, { block }) {
    const begins = FIRST + EVERY * block;
    screen.textContent = shown; // jsPsych clears the screen after each trial
    const over = new Promise(resolve => {
      taken = message => {
        if (message.run !== RUN) return;
        if (message.state === "shown") seen = message.step; // where it is held, the last step stays
        const step = message.state === "baseline" ? "+" : `step ${seen} of ${message.steps}`;
        screen.textContent = shown = `volume ${message.volume}: ${step}`;
        if (message.volume === begins + EVERY - 1) resolve();
      };
    });
    await announce({
      kind: "trial", trial: `r0${RUN}b0${block}`, onset_s: T_R_S * begins, duration_s: T_R_S * VOLUMES, condition: `seen-${seen}`,
    });
    await over;
    this.jsPsych.finishTrial({ seen });
  }
}

const jsPsych = initJsPsych();
await announce({ kind: "run_start" });
await jsPsych.run(Array.from({ length: BLOCKS }, (_, block) => ({ type: Block, block })));
await announce({ kind: "run_end" });
document.title = "done";
