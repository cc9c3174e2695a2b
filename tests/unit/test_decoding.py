"""What is published of trials and volumes, also when decoding them fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta as beta_distribution

from rtdecode import client as wire
from rtdecode.blinding.allocation import Arm
from rtdecode.decoded import DecodedPart, Embedding, Prediction, Reconstruction, Score
from rtdecode.errors import EngineError
from rtdecode.packs import open_participant
from rtdecode.protocol_file import ShamPlan
from rtdecode.publish.pictures import Encoding, media_type
from rtdecode.records import BetaUpdate, RegisteredVolume, Stamp
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.blind import Blind
from rtdecode.session.decoding import Decoding
from rtdecode.session.feedback import TrialFeedback
from rtdecode.session.lanes import Closed, DecodeLanes
from tests.blinded import seal_for
from tests.conftest import FakeClock
from tests.decode_small import category_update, write_category_bundle

SCORE = Score(
    predicted="cat",
    probabilities={"cat": 0.6, "dog": 0.4},
    top=("cat",),
    rank=None,
    pool=2,
    posterior={"cat7": 0.75, "dog1": 0.25},
    evidence=0.6,
    chance=0.5,
    supported=True,
    refused="",
    p_content=0.02,
    p_category=0.04,
    p_groups={},
    unknown=(),
    p_motion=0.5,
    p_signal=None,
    p_agreement=0.1,
    plausible=("cat", "dog"),
    null="repeats",
)


class FailingService:
    """Yields what it is given, then fails."""

    restarts, gpu_bytes, categories, absent, window = 0, None, ("cat", "dog"), (), 0
    fallbacks = ("prior is run step by step",)

    def __init__(self, *parts: DecodedPart) -> None:
        self._parts = parts

    def load(self, folder: Path) -> str:
        return folder.name

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        yield from ((part, 1.0) for part in self._parts)
        raise EngineError("the decode worker died")

    def close(self) -> None:
        pass


class Kept:
    """Keeps what is published and recorded."""

    def __init__(self, claim: float = 1.0) -> None:
        self._claim = claim
        self.messages: list[wire.Message] = []
        self.rows: list[tuple[Any, ...]] = []
        self.kept: list[tuple[str, int, np.ndarray[Any, Any], int]] = []
        self.inputs = SimpleNamespace(append=lambda *_, **__: None)

    def publish(self, message: wire.Message) -> None:
        self.messages.append(message)

    def decoded(self, *row: Any) -> None:
        self.rows.append(row)

    def claim(self) -> float:
        return self._claim

    def picture(self, trial: str, revision: int, image: np.ndarray[Any, Any]) -> str:
        self.kept.append((trial, revision, image, len(self.messages)))
        return "recon/kept.webp"


def failed(tmp_path: Path, *parts: DecodedPart, encoding: Encoding = "jpeg") -> Kept:
    kept, lane = Kept(), DecodeLanes()
    write_category_bundle(tmp_path / "bundle")
    service: Any = FailingService(*parts)
    decoding = Decoding(service, lane, kept, kept, FakeClock(), lambda: None, encoding)  # type: ignore[arg-type]
    decoding.ask(open_participant(tmp_path / "bundle"))
    assert decoding.once(0)
    lane.pictures.put(category_update(3))
    with pytest.raises(EngineError, match="died"):
        decoding.once(0)
    return kept


def test_a_trial_that_cannot_be_decoded_ends_with_its_reason(tmp_path: Path) -> None:
    kept = failed(tmp_path)
    (message,) = kept.messages
    assert isinstance(message, wire.Score)
    assert (message.trial, message.final, message.invalid) == ("r5t1", True, "not decoded: the decode worker died")
    assert (message.evidence, message.supported, message.p_content) == (0.0, False, 1.0)
    assert kept.rows == []


def test_a_score_stands_though_the_picture_failed(tmp_path: Path) -> None:
    empty = np.zeros((2, 3), np.float32)
    kept = failed(tmp_path, Embedding(tokens=empty, components=empty[0], score=SCORE, nearest={}))
    assert [(type(message), message.invalid) for message in kept.messages] == [
        (wire.Embedding, None),
        (wire.Score, None),
    ]
    ((beta, found, path, _latency),) = kept.rows
    assert (beta.event.trial, [type(part) for part in found], path) == ("r5t1", [Embedding, Score], None)
    assert found[1].predicted == "cat"


class Searching(FailingService):
    """Names pictures of a pool, or says why not."""

    def __init__(self, *unsearched: str) -> None:
        super().__init__()
        self._unsearched = iter(unsearched)

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        empty = np.zeros((2, 3), np.float32)
        why = next(self._unsearched)
        yield Embedding(tokens=empty, components=empty[0], score=SCORE, nearest={}, unsearched=why), 1.0


def test_a_pool_that_does_not_answer_is_told_once_and_so_is_its_return(tmp_path: Path) -> None:
    kept, lane = Kept(), DecodeLanes()
    write_category_bundle(tmp_path / "bundle")
    service: Any = Searching("", "no answer", "no answer", "", "")
    decoding = Decoding(service, lane, kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    decoding.ask(open_participant(tmp_path / "bundle"))
    assert decoding.once(0)
    told = []
    for number in range(5):
        beta = category_update(3)
        lane.pictures.put(replace(beta, event=replace(beta.event, trial=f"t{number}")))
        assert decoding.once(0)
        told.append([(m.kind, m.reason, m.over) for m in kept.messages if isinstance(m, wire.Fault)])
        kept.messages = [m for m in kept.messages if not isinstance(m, wire.Fault)]
    assert told == [[], [("pool", "no answer", False)], [], [("pool", "no answer", True)], []]
    embeddings = [m for m in kept.messages if isinstance(m, wire.Embedding)]
    assert [m.unsearched for m in embeddings] == ["", "no answer", "no answer", "", ""]
    assert sum(isinstance(m, wire.Score) for m in kept.messages) == 5


class Scoring(FailingService):
    """Finds one trial after the other supported or not."""

    def __init__(self, *supported: bool) -> None:
        super().__init__()
        self._supported = iter(supported)

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        empty = np.zeros((2, 3), np.float32)
        score = replace(SCORE, supported=next(self._supported))
        yield Embedding(tokens=empty, components=empty[0], score=score, nearest={}), 1.0


def claims(tmp_path: Path, *betas: tuple[bool, bool], before: float = 1.0) -> list[float]:
    """Claims told of betas, each (supported, final), after what the tables say of the session."""
    kept, lanes = Kept(before), DecodeLanes()
    if not (tmp_path / "bundle").exists():
        write_category_bundle(tmp_path / "bundle")
    service = Scoring(*(supported for supported, _ in betas))
    decoding = Decoding(service, lanes, kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    bundle = open_participant(tmp_path / "bundle")
    decoding.ask(replace(bundle, evidence={**bundle.evidence, "independent_nulls": np.array([40])}))
    assert decoding.once(0)
    for number, (_, final) in enumerate(betas):
        beta = category_update(3)
        event = replace(beta.event, trial=f"t{number}")
        lanes.pictures.put(replace(beta, event=event, final=final))
        assert decoding.once(0)
    found = [message.claim for message in kept.messages if isinstance(message, wire.Score)]
    assert [row[1][-1].claim for row in kept.rows] == [c for c, (_, final) in zip(found, betas, strict=True) if final]
    return [float(claim) for claim in found if claim is not None]


def test_final_trials_bet_on_the_session(tmp_path: Path) -> None:
    limit = beta_distribution.ppf(0.99, 2, 39)  # of a gate that opens above all of 40 nulls but one
    won, lost = 0.5 + 0.5 / limit, 0.5
    found = claims(tmp_path, (True, False), (True, True), (True, True), (False, True), (True, False))
    np.testing.assert_allclose(found, np.cumprod([1, won, won, lost, 1]))


def test_a_session_that_is_taken_up_again_goes_on_with_its_claim(tmp_path: Path) -> None:
    trials = [(True, True), (False, True), (True, True), (True, True)]
    whole = claims(tmp_path, *trials)
    first = claims(tmp_path, *trials[:2])
    assert first == whole[:2]
    np.testing.assert_allclose(claims(tmp_path, *trials[2:], before=first[-1]), whole[2:])


def test_a_claim_that_was_reached_stands(tmp_path: Path) -> None:
    assert claims(tmp_path, (False, True), (True, True), (False, True), before=20.0) == [20.0] * 3
    below = claims(tmp_path, (False, True), before=19.9)
    assert below == [19.9 / 2]


class Emptying(FailingService):
    """Finds content in so many trials, then none."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._left = first

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        self._left -= 1
        empty = np.zeros((2, 3), np.float32)
        score = replace(SCORE, p_content=0.001 if self._left >= 0 else 0.9)
        yield Embedding(tokens=empty, components=empty[0], score=score, nearest={}), 1.0


@pytest.mark.parametrize(("first", "final", "told"), [(8, True, 1), (40, True, 0), (8, False, 0)])
def test_trials_that_hold_less_than_calibrations_are_told_of_once(
    tmp_path: Path, first: int, final: bool, told: int
) -> None:
    kept, lanes = Kept(1.0), DecodeLanes()
    write_category_bundle(tmp_path / "bundle")
    decoding = Decoding(Emptying(first), lanes, kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    decoding.ask(open_participant(tmp_path / "bundle"))
    assert decoding.once(0)
    for number in range(40):
        beta = category_update(3)
        lanes.pictures.put(replace(beta, event=replace(beta.event, trial=f"t{number}"), final=final))
        assert decoding.once(0)
    faults = [message for message in kept.messages if isinstance(message, wire.Fault) and message.kind == "content"]
    assert len(faults) == told
    assert all("the last 20 trials hold less of a picture" in fault.reason for fault in faults)


class Predicting(FailingService):
    """Says how many volumes it was given; fails on what it is told to."""

    window = 3

    def __init__(self, *fails: int) -> None:
        super().__init__()
        self._fails = fails

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[DecodedPart, float]]:
        empty = np.zeros((2, 3), np.float32)
        yield Embedding(tokens=empty, components=empty[0], score=SCORE, nearest={}), 1.0

    def predict(self, volumes: Sequence[RegisteredVolume]) -> tuple[Prediction, float]:
        if volumes[-1].stamp.volume in self._fails:
            raise EngineError("no such volume")
        places = {f"at {i}": float(volume.stamp.volume) for i, volume in enumerate(volumes)}
        return Prediction(values=places), 2.0


def registered(volume: int, run: int = 5, received_mono_s: float = 1000.0) -> RegisteredVolume:
    return RegisteredVolume(
        stamp=Stamp(session="s", run=run, volume=volume, received_s=0.0, received_mono_s=received_mono_s),
        masked=np.zeros(60, np.float32),
        matrix=np.eye(4),
        motion=np.zeros(6),
        fd_mm=0.0,
        dvars=0.0,
        tsnr=1.0,
        fit=1.0,
    )


def predicting(tmp_path: Path, clock: FakeClock, *fails: int, load: bool = True) -> tuple[Kept, DecodeLanes, Decoding]:
    kept, lanes = Kept(), DecodeLanes()
    decoding = Decoding(Predicting(*fails), lanes, kept, kept, clock, lambda: None)  # type: ignore[arg-type]
    if load:
        write_category_bundle(tmp_path / "bundle")
        decoding.ask(open_participant(tmp_path / "bundle"))
        assert decoding.once(0)
    return kept, lanes, decoding


def test_volumes_are_predicted_of_in_order_and_wait_for_trials(tmp_path: Path, clock: FakeClock) -> None:
    kept, lanes, decoding = predicting(tmp_path, clock)
    for volume in range(3):
        lanes.volumes.put(registered(volume))
    assert decoding.once(0)
    lanes.pictures.put(category_update(3))
    clock.now += 2.5
    while decoding.once(0):
        pass
    told = [(type(m).__name__, m.volume, getattr(m, "values", None)) for m in kept.messages]
    assert told == [
        ("Prediction", 0, {"at 0": 0.0}),
        ("Embedding", 12, None),
        ("Score", 12, None),
        ("Prediction", 1, {"at 0": 0.0, "at 1": 1.0}),
        ("Prediction", 2, {"at 0": 0.0, "at 1": 1.0, "at 2": 2.0}),
    ]
    last = kept.messages[-1]
    assert isinstance(last, wire.Prediction)
    assert (last.run, last.final, last.late_s, last.stages["predict"]) == (5, True, pytest.approx(2.5), 2.0)
    assert decoding.health()["decode_ms"] == {"embed": 1.0, "predict": 2.0}


def test_a_prediction_looks_back_within_its_run_and_window(tmp_path: Path, clock: FakeClock) -> None:
    kept, lanes, decoding = predicting(tmp_path, clock)
    decoding.pass_by(registered(7))
    for volume, run in ((8, 5), (9, 5), (11, 5), (0, 6)):
        lanes.volumes.put(registered(volume, run))
        assert decoding.once(0)
    assert [[*m.values.values()] for m in kept.messages] == [[7, 8], [7, 8, 9], [8, 9, 11], [0]]  # type: ignore[attr-defined]


def test_a_volume_that_nothing_can_be_predicted_of_says_why_and_the_next_goes_on(
    tmp_path: Path, clock: FakeClock
) -> None:
    kept, lanes, decoding = predicting(tmp_path, clock, 0)
    for volume in range(2):
        lanes.volumes.put(registered(volume))
    with pytest.raises(EngineError, match="no such volume"):
        decoding.once(0)
    assert decoding.once(0)
    assert [(m.volume, m.invalid) for m in kept.messages] == [(0, "not predicted: no such volume"), (1, None)]


def test_volumes_wait_for_a_participant_and_get_their_last_word_at_the_end(tmp_path: Path, clock: FakeClock) -> None:
    kept, lanes, decoding = predicting(tmp_path, clock, load=False)
    lanes.volumes.put(registered(0))
    clock.now += 100.0
    assert not decoding.once(0)
    assert decoding.late_s() == 0.0
    decoding.end()
    assert decoding.once(0)
    (message,) = kept.messages
    assert message.invalid == "not predicted: the session ended before a ParticipantBundle was loaded"
    lanes.close()
    with pytest.raises(Closed):
        decoding.once(0)


def test_how_late_predictions_are_counts_from_when_they_could_be_made(tmp_path: Path, clock: FakeClock) -> None:
    _, lanes, decoding = predicting(tmp_path, clock)
    lanes.volumes.put(registered(0, received_mono_s=clock.now - 50.0))
    lanes.volumes.put(registered(1, received_mono_s=clock.now + 1.0))
    clock.now += 4.0
    assert decoding.late_s() == pytest.approx(4.0)
    assert decoding.once(0)
    assert decoding.late_s() == pytest.approx(3.0)
    assert decoding.once(0)
    assert decoding.late_s() == 0.0


@pytest.mark.parametrize("encoding", ["jpeg", "webp", "png"])
def test_a_message_carries_a_picture_as_asked_and_the_folder_keeps_it_without_loss_afterwards(
    tmp_path: Path, encoding: Encoding
) -> None:
    smooth = np.linspace(0, 255, 48)[:, None, None] * np.linspace(0.2, 1, 64)[:, None] * np.array([1, 0.5, 0.25])
    picture = smooth.astype(np.uint8)
    kept = failed(tmp_path, Reconstruction(image=picture), encoding=encoding)
    message = kept.messages[0]
    assert isinstance(message, wire.Reconstruction)
    assert (message.format, message.width, message.height) == (encoding, 64, 48)
    with Image.open(BytesIO(message.image)) as sent:
        assert sent.format == encoding.upper()
        off = np.abs(np.asarray(sent.convert("RGB")).astype(int) - picture)
    assert off.max() <= (4 if encoding == "jpeg" else 0)
    assert media_type(message.image) == f"image/{encoding}"
    ((trial, revision, image, published),) = kept.kept
    assert (trial, revision) == ("r5t1", 0)
    assert published == 1  # the message was out before the slow encoding began
    np.testing.assert_array_equal(image, picture)


def test_heartbeats_tell_what_runs_otherwise_than_it_was_to() -> None:
    kept: Any = Kept()
    decoding = Decoding(FailingService(), DecodeLanes(), kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    assert wire.Heartbeat(**decoding.health()).fallbacks == ("prior is run step by step",)


@pytest.mark.parametrize("arm", ["real", "sham"])
def test_a_blinded_session_tells_of_a_trial_what_is_shown_and_no_more(tmp_path: Path, arm: Arm) -> None:
    sealed: list[tuple[str, int]] = []
    key, plan = bytes(32), ShamPlan(kind="other", target="dog")
    blind = Blind(seal_for(arm, key), key, plan, "s", 1.5, lambda place, one: sealed.append((place, len(one))))
    feedback = TrialFeedback(FeedbackSettings(score="category", target="cat", deadline_s=1e9), blind)
    write_category_bundle(tmp_path / "bundle")
    kept, lanes = Kept(), DecodeLanes()
    service: Any = Scoring(True)
    decoding = Decoding(service, lanes, kept, kept, FakeClock(), lambda: None, feedback=feedback)  # type: ignore[arg-type]
    decoding.ask(open_participant(tmp_path / "bundle"))
    assert decoding.once(0)
    beta = category_update(3)
    lanes.pictures.put(beta)
    assert decoding.once(0)
    shown, withheld = kept.messages
    assert isinstance(shown, wire.Feedback)
    assert isinstance(withheld, wire.Score)
    assert (shown.value, shown.target, shown.state) == ({"real": 0.6, "sham": 0.4}[arm], "cat", "shown")
    assert (withheld.trial, withheld.final, withheld.invalid) == (beta.event.trial, beta.final, None)
    assert withheld.refused == "withheld: the session is blinded"
    assert (withheld.probabilities, withheld.predicted, withheld.top, withheld.evidence) == ({}, "", (), 0.0)
    assert kept.rows == kept.kept == []
    assert sealed == [(f"run {beta.stamp.run} trial {beta.event.trial} revision {beta.revision}", 48)]
