"""Two visits in a row at the scanner's pace, with an experiment's client and the page left open all the time.

    PYTHONPATH=. python bench/two_visits.py [--speed 1] [--json FILE]

Visit 1 is calibrated and decoded, visit 2 is decoded with its bundle from the first trial on. Daemon, calibration, page
and client are real processes and sockets, and the scanner waits for nobody. Counts the trials without a last word at
the client, the topics with a gap, a repetition or another order, and tells what the page shows in the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from _report import print_table, write_json

from rtdecode import client as wire
from rtdecode.simulate.cli import speed
from tests.system.test_two_visits import (
    DAYS,
    Listener,
    Visits,
    comes_to_show_the_second,
    out_of_order,
    page,
    unfinished,
)

SHORT = tuple(replace(day, trials_per_run=12, volumes_per_run=40) for day in DAYS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=speed, default=1.0, help="times real time, or max (default 1)")
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        visits = Visits(Path(scratch), SHORT, args.speed)
        with Listener(visits.addresses) as listener, page(visits.addresses) as address:
            codes = [visits.run(visit, listener) for visit in (1, 2)]
            for session in ("sim-01", "sim-02"):
                listener.await_(wire.Session, session, state="ended")
            second = comes_to_show_the_second(address, SHORT)
    missing = unfinished(listener, SHORT)
    figures = {
        "speed": args.speed,
        "exit_codes": codes,
        "trials": [len(day.trials) for day in SHORT],
        "trials_without_a_last_word": {visit: sorted(trials) for visit, trials in missing.items()},
        "topics_out_of_order": out_of_order(listener),
        "trials_not_decoded": [m.trial for m in listener.of(wire.Score, "sim", final=True) if m.invalid is not None],
        "faults": [m.reason for m in listener.of(wire.Fault, "sim")],
        "page_shows_the_second": second,
        "seconds": round(time.monotonic() - began),
    }
    print_table("Two visits in a row", ["", ""], [(name, str(value)) for name, value in figures.items()])
    if args.json:
        write_json(args.json, figures)
    whole = not any(missing.values()) and not figures["topics_out_of_order"] and codes == [0, 0]
    return int(not whole or not second)


if __name__ == "__main__":
    sys.exit(main())
