"""Runs an example in PsychoPy itself, and tells what was on the screen; a program for PsychoPy's own Python.

A key is pressed as a scanner's trigger box does, through the X server. Xvfb has no blanking to wait for: each flip is
held back to the next sixtieth of a second. What is told of a frame is read from the screen's pixels.

    python psychopy_screen.py EXAMPLE STREAM REQUESTS TRIAL_S
"""

import importlib.util
import json
import sys
import threading
import time

import numpy as np
from psychopy import event, visual
from Xlib import XK, X
from Xlib.display import Display
from Xlib.ext.xtest import fake_input

FRAME_S = 1 / 60
begun = threading.Event()
flips, seen = [], []
wait_keys = event.waitKeys


def press(key):
    display = Display()
    code = display.keysym_to_keycode(XK.string_to_keysym(key))
    while not begun.is_set():
        for kind in (X.KeyPress, X.KeyRelease):
            fake_input(display, kind, code)
        display.sync()
        time.sleep(0.2)


def wait_for_trigger(**given):
    found = wait_keys(**given)
    begun.set()
    flips.clear()  # those of the window's opening
    seen.clear()
    return found


def column(window):
    """Share of the screen's middle column that is white."""
    pixels = np.asarray(window._getFrame(buffer="back"))
    return float((pixels[:, pixels.shape[1] // 2].min(-1) > 250).mean())


class Window(visual.Window):
    def flip(self, *args, **kwargs):
        due = (flips[-1] if flips else time.perf_counter()) + FRAME_S
        time.sleep(max(0.0, due - time.perf_counter()))
        seen.append(column(self))
        super().flip(*args, **kwargs)
        flips.append(time.perf_counter())


def main(example, stream, requests, trial_s):
    spec = importlib.util.spec_from_file_location("example", example)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TRIAL_S = float(trial_s)
    visual.Window, event.waitKeys = Window, wait_for_trigger
    threading.Thread(target=press, args=("5",), daemon=True).start()
    module.main(stream, requests)
    print(json.dumps({"columns": seen, "intervals_ms": (1e3 * np.diff(flips)).tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
