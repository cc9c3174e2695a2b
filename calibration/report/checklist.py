"""The CRED-nf checklist: what a session's records fill in, and what is for the authors to state.

Ros et al., "Consensus on the reporting and experimental design of clinical and cognitive-behavioural neurofeedback
studies (CRED-nf checklist)", Brain 143(6), 2020.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.report.regulation import FeedbackRun, success
from calibration.session_trials import RecordedCalibration
from rtdecode import version

NOT_STATED = "not stated"
_ASKED: tuple[tuple[str, str], ...] = (
    ("1a", "preregistration"),
    ("1b", "justification of the sample size"),
    ("2a", "control group or condition"),
    ("2b", "double blinding"),
    ("2c", "blinded raters"),
    ("2d (i)", "blinded analysts"),
    ("2d (ii)", "whether blinding was checked"),
    ("2e", "standard of care as comparison"),
    ("3a", "psychosocial factors"),
    ("3b", "strategy that participants were given"),
    ("3c", "strategies that participants used"),
    ("3d", "online processing and artifact correction"),
    ("3e", "artifacts by condition and group"),
    ("4a", "how the feature is extracted"),
    ("4b", "reinforcement schedule"),
    ("4c", "modality and content of the feedback"),
    ("4d", "all brain variables, as displayed"),
    ("4e", "hardware and software"),
    ("5a", "regulation success"),
    ("5b", "plots within and between sessions"),
    ("5c", "comparison with the control"),
    ("6a", "behavioural or clinical outcome"),
    ("6b", "correlation of regulation with outcome"),
    ("7a", "open data and materials"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the checklist."""

    number: str
    asks: str
    says: str


def cred_nf(
    session: RecordedCalibration | None,
    rows: Sequence[dict[str, str]],
    runs: Sequence[FeedbackRun] = (),
    rule: str = "",
    planned: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Fill in what the session's records tell; all else is "not stated".

    Parameters
    ----------
    session : RecordedCalibration or None
        None where it was not calibrated.
    rows : sequence of dict
        Decoded trials, as their tables have them.
    runs : sequence of FeedbackRun
        Of this session and of earlier ones.
    rule : str
        The settings of the feedback.
    planned : mapping of str to str, optional
        What the protocol tells, by number.
    """
    shown = sum(row["supported"] == "1" for row in rows)
    known = _always(rows, shown)
    if session is not None:
        known |= _of_decoder(session)
    if runs:
        known |= _of_feedback(runs, rule)
    known |= planned or {}
    return [Entry(number=number, asks=asks, says=known.get(number, NOT_STATED)) for number, asks in _ASKED]


def _always(rows: Sequence[dict[str, str]], shown: int) -> dict[str, str]:
    return {
        "3d": "rigid-body registration of every volume to the reference, drift and motion regressors, volumes beyond "
        "the motion limit left out of the fit, causal single-trial GLM; see the table of quality",
        "4d": f"{len(rows)} decoded trials, of which {shown} were shown as supported; all are listed under Trials",
        "4e": f"rtdecode {version.__version__}, Python {platform.python_version()}; scanner, display and computer: "
        + NOT_STATED,
        "7a": "volumes, events, betas and results of this session are kept as BIDS derivatives; access: " + NOT_STATED,
    }


def _of_decoder(session: RecordedCalibration) -> dict[str, str]:
    provenance = session.bundle.provenance
    return {
        "4a": f"encoding model of {provenance.voxels} voxels, learned from {provenance.trials} trials of this "
        f"participant ({session.pack.name} pack), turned round",
        "4e": f"rtdecode {version.__version__}, pack {session.pack.identity[:12]}, Python {platform.python_version()}; "
        "scanner, display and computer: " + NOT_STATED,
        "5b": "the learning curve of this session; between sessions: " + NOT_STATED,
    }


def _of_feedback(runs: Sequence[FeedbackRun], rule: str) -> dict[str, str]:
    states = {state: sum(run.count(state) for run in runs) for state in ("baseline", "shown", "held")}
    sent = ", ".join(f"{count} {state}" for state, count in states.items())
    own = {run.session for run in runs}
    return {
        "4b": f"after every volume, or every decoded trial of a category: {rule}",
        "4c": "a level from 0 to 1 and its step; how the experiment presented it: " + NOT_STATED,
        "4d": f"{sum(states.values())} values of feedback ({sent}), each as it was displayed: see Feedback",
        "5a": success(runs) or "too few values were shown in any run",
        "5b": "see Feedback: within this session, "
        + ("between sessions" if len(own) > 1 else "between sessions: name the earlier ones with --earlier"),
    }
