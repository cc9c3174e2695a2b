"""A small simulated visit that several tests share."""

from __future__ import annotations

from functools import cache

from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.visit import VisitPlan

PROTOCOL = Protocol(shape=(32, 32, 12), voxel_mm=(6.8, 6.8, 10.0), t_r_s=1.5)
PLAN = VisitPlan(seed=3, calibration_runs=1, decoding_runs=1, trials_per_run=8, volumes_per_run=26)


@cache
def participant() -> Participant:
    """Return a participant of few voxels; made once."""
    return make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60))
