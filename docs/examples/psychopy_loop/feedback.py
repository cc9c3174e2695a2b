"""Three trials of feedback with PsychoPy: a thermometer, drawn anew with every frame, that no network ever holds up."""

from client import Client, Feedback
from psychopy import core, event, visual

RUN, TRIALS, TRIAL_S = 1, 3, 12.0


def main(stream, requests, key=None):
    """Announce trials and draw the latest step, fixation while there is none or nothing comes."""
    window = visual.Window(fullscr=True, units="height")
    frame = visual.Rect(window, width=0.12, height=0.8, lineColor="white", fillColor=None)
    level = visual.Rect(window, width=0.12, fillColor="white", lineColor=None, anchor="bottom")
    fixation = visual.TextStim(window, text="+")
    with Client(stream, requests, topics=["feedback"], key=key) as client:
        client.event(kind="run_start", run=RUN)
        event.waitKeys(keyList=["5"])  # the scanner's trigger
        clock = core.Clock()
        seen = 0
        for number in range(TRIALS):
            trial, onset_s, shown = f"r{RUN:02d}t{number:02d}", clock.getTime(), None
            client.event(
                kind="trial", run=RUN, trial=trial, onset_s=onset_s, duration_s=2.0, condition=f"seen-{seen}"
            )  # between trials, where no frame waits for it
            while clock.getTime() < onset_s + TRIAL_S:
                message = client.receive(timeout_s=0)  # takes what has come, and never waits
                if isinstance(message, Feedback) and message.trial == trial and message.state == "shown":
                    shown, seen = message, message.step
                if shown is None or client.silent:
                    fixation.draw()
                else:
                    level.height, level.pos = 0.8 * shown.step / shown.steps, (0, -0.4)
                    level.draw()
                    frame.draw()
                window.flip()
        client.event(kind="run_end", run=RUN)
    window.close()


if __name__ == "__main__":
    main("tcp://127.0.0.1:5591", "tcp://127.0.0.1:5592")
