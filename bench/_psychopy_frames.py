"""Draws with PsychoPy while pictures come or do not; a program for PsychoPy's own Python, of ``psychopy_frames.py``.

Xvfb has no blanking to wait for: flips are held back to the next sixtieth of a second. A frame that takes longer would
be dropped by a screen.

    python _psychopy_frames.py STREAM REQUESTS SECONDS
"""

import io
import json
import sys
import time

from client import Client
from PIL import Image
from psychopy import visual

FRAME_S = 1 / 60
LATELY_S = 0.3


def main(stream, requests, seconds):
    window = visual.Window(fullscr=True)
    shown = visual.ImageStim(window, image=Image.new("RGB", (256, 256)))
    took = {"without": [], "with": []}
    pictures = 0
    with Client(stream, requests, topics=["reconstruction"]) as client:
        end, came = time.perf_counter() + float(seconds), -1e9
        flipped = time.perf_counter()
        while flipped < end:
            message = client.receive(timeout_s=0)
            if message is not None:
                shown.image = Image.open(io.BytesIO(message.image))
                came, pictures = time.perf_counter(), pictures + 1
            shown.draw()
            time.sleep(max(0.0, flipped + FRAME_S - time.perf_counter()))
            window.flip()
            now = time.perf_counter()
            took["with" if now - came < LATELY_S else "without"].append(1e3 * (now - flipped))
            flipped = now
    window.close()
    print(json.dumps({**took, "pictures": pictures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
