"""What the session is doing, in one word for the lamp and a few for the operator."""

from __future__ import annotations

from typing import Any

PHASES = {
    "waiting": "waiting for the daemon",
    "asking": "daemon found, asking for the session",
    "first-volume": "waiting for the first volume",
    "calibrating": "calibrating",
    "fitting": "fitting the decoder",
    "decoding": "decoding",
    "watching": "comparing with the film",
    "fault": "fault",
    "no-volume": "no volume",
    "paused": "decoding is paused",
    "resuming": "resuming the session",
    "ending": "ending the session",
    "ended": "session ended",
    "lost": "no contact",
}


def doing(session: dict[str, Any], run: dict[str, Any], note: str, *, film: bool = False) -> str:
    """Return what the session itself is at, whatever is wrong with it.

    Parameters
    ----------
    session, run : dict
        As `Board.state` has them; empty if not known.
    note : str
        What the calibration last said.
    film : bool
        Whether a film is on in this run.
    """
    if not session:
        return "asking"
    if film:
        return "watching"
    if session["mode"] == "decode":
        return "decoding" if run else "first-volume"
    if not run:
        return "first-volume"
    wanted, number = session["calibration_runs"], run["number"]
    collected = number > wanted or (number == wanted and run["state"] == "ended")
    return "fitting" if collected or note.startswith("fitting") else "calibrating"


def phase(
    does: str,
    state: str,
    *,
    known: bool,
    alive: bool,
    another: bool,
    starved: bool,
    alarming: bool,
    paused: bool = False,
) -> str:
    """Return the key of `PHASES` that the lamp shows.

    Parameters
    ----------
    does : str
        Of `doing`.
    state : str
        Of the session message; empty if there was none.
    known, alive : bool
        Whether a heartbeat ever came; whether heartbeats come.
    another : bool
        Whether they are of another session, of which nothing is known yet.
    starved : bool
        Whether volumes have stopped coming.
    alarming : bool
        Whether there is a fault that nobody has acknowledged.
    paused : bool
        Whether the operator, or a rule, has paused decoding.
    """
    if alive and another:
        return "asking"
    if state == "ended":
        return "ended"
    if not alive:
        return "lost" if known else "waiting"
    if state in ("resuming", "ending"):
        return state
    if starved:
        return "no-volume"
    if alarming:
        return "fault"
    return "paused" if paused else does
