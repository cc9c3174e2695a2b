"""Running averages over repeats through the whole line: corrected, withdrawn, left out, and killed on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.client import unpack
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_decoder
from rtdecode.decoded import Embedding
from rtdecode.derivatives import decoded_rows
from rtdecode.packs import open_pack, open_participant
from rtdecode.publish import requests
from rtdecode.session.entries import read_outputs
from rtdecode.session.journal import Journal
from rtdecode.settings import DecodeSettings
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, Killed, Recorder, Rig, run_visit

REPEATED = replace(PLAN, decoding_runs=2, trials_per_run=8, volumes_per_run=30)
TRIALS = {run: [trial.trial for trial in REPEATED.of_run(run)] for run in (3, 4)}
SHOWN = {
    trial: f"s{17 + place % 4:04d}" for run in (3, 4) for place, trial in enumerate(TRIALS[run])
}  # each twice a run
AMENDED, WITHDRAWN = TRIALS[3][1], TRIALS[3][2]
ASKED: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {
    (3, 8): (requests.Event, {"kind": "amend", "run": 3, "trial": AMENDED, "stimulus": SHOWN[TRIALS[3][0]]}),
    (3, 10): (requests.Event, {"kind": "cancel", "run": 3, "trial": WITHDRAWN}),
    (4, 18): (requests.Control, {"token": "bad", "command": "bad_run", "run": 3, "reason": "fell asleep"}),
}


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """A visit whose two decoding runs show four pictures again and again, as the experiment tells; it dies twice."""
    rigs: list[Rig] = []
    request, start, append = Rig.request, Rig._start, Journal.append
    written = 0

    def told(self: Rig, kind: Any, /, **fields: Any) -> dict[str, Any]:
        if fields.get("kind") == "trial" and fields["trial"] in SHOWN:
            fields["stimulus"] = SHOWN[fields["trial"]]
        return request(self, kind, **fields)

    def started(self: Rig, *, resume: bool) -> None:
        rigs.append(self)
        start(self, resume=resume)

    def dying(self: Journal, kind: str, **fields: Any) -> int:
        nonlocal written
        begun = append(self, kind, **fields)
        if fields.get("topic") == "score":
            written += 1
            if written in (5, 21):
                raise Killed
        return begun

    def ask(run: int, volume: int, _: Path) -> None:
        if (run, volume) in ASKED:
            kind, fields = ASKED[run, volume]
            rigs[-1].request(kind, **fields)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rig, "request", told)
        patched.setattr(Rig, "_start", started)
        patched.setattr(Journal, "append", dying)
        sections = {
            "decode": {"average_repeats": True},
            "estimate": {"revise_at_s": [6.0]},
            "feedback": {"score": "none", "target": ""},
        }
        found = run_visit(tmp_path_factory.mktemp("visit"), FakeClock(), REPEATED, ask, **sections)
    assert rigs[-1].restarts == 2
    return found


@pytest.fixture(scope="module")
def decoder(visit: tuple[Recorder, Path]) -> Decoder:
    _, folder = visit
    made = load_decoder(open_pack("tiny"), DecodeSettings(stimuli=folder.parent / "stimuli"))
    made.load(open_participant(folder / "bundle"))
    return made


def test_a_picture_is_of_all_trials_of_its_stimulus_so_far(visit: tuple[Recorder, Path], decoder: Decoder) -> None:
    _, folder = visit
    told = [
        unpack(entry.topic.encode(), entry.payload) for _, entry in read_outputs(folder / "journal/outputs.journal")
    ]
    embeddings, scores, pictures = (
        {(m.trial, m.revision): m for m in told if isinstance(m, kind)}
        for kind in (wire.Embedding, wire.Score, wire.Reconstruction)
    )
    seen: dict[str, list[tuple[int, np.ndarray]]] = {}
    counts = []
    for message in told:
        if isinstance(message, wire.Session) and message.bad_runs:
            seen = {name: [one for one in each if one[0] != 3] for name, each in seen.items()}
        if not isinstance(message, wire.Beta) or message.run in (1, 2) or message.invalid:
            continue
        assert message.beta is not None
        assert message.stimulus is not None
        beta = np.frombuffer(message.beta.data, message.beta.dtype)
        earlier = [one for _, one in seen.get(message.stimulus, [])]
        if message.final:
            seen.setdefault(message.stimulus, []).append((message.run or 0, beta))
        key = message.trial, message.revision
        score, n = scores[key], 1 + len(earlier)
        assert (score.shown, embeddings[key].shown, pictures[key].shown) == (n, n, n)
        assert (score.average_predicted is None) == (n == 1)
        if message.final:
            counts.append(n)
            found = next(
                iter(decoder.decode(np.mean([*earlier, beta], 0, dtype=np.float64).astype(np.float32), (), ""))
            )
            assert isinstance(found, Embedding)
            packed = embeddings[key].tokens
            assert packed is not None
            tokens = np.frombuffer(packed.data, packed.dtype).reshape(packed.shape)
            np.testing.assert_allclose(tokens, found.tokens, atol=1e-5)
            alone = next(iter(decoder.decode(beta, (message.stimulus, message.condition), "")))
            assert isinstance(alone, Embedding)
            assert score.evidence == pytest.approx(alone.score.evidence)
            assert score.predicted == alone.score.predicted
    assert max(counts) >= 4
    amended = [m for m in scores.values() if m.trial == AMENDED and m.final]
    assert [(m.stimulus, m.shown) for m in amended] == [(SHOWN[TRIALS[3][0]], 2)]
    again = next(m for m in scores.values() if m.trial == TRIALS[3][6] and m.final)
    assert (SHOWN[WITHDRAWN], again.shown) == (SHOWN[TRIALS[3][6]], 1)
    last = {m.trial: m.shown for m in scores.values() if m.final and m.run == 4 and not m.invalid}
    assert max(list(last.values())[-3:]) <= 2  # run 3 was marked as bad
    rows = {row["trial"]: row for row in decoded_rows(folder)}
    assert {trial: int(row["shown"]) for trial, row in rows.items() if trial in last} == last
