import json

from rtdecode import client as wire
from rtdecode.publish.display.board import REPLACED_PICTURES, Board


def decoded(revision: int, final: bool, evidence: float = 0.8) -> list[wire.Message]:
    head = {
        "run": 7,
        "trial": "t1",
        "revision": revision,
        "final": final,
        "stages": {"total": 50.0 + revision},
    }
    score = wire.Score(**head, predicted="cat", evidence=evidence, chance=0.125, p_noise=0.01, stimulus="s1")  # type: ignore[arg-type]
    caption = wire.Caption(**head, text=f"caption {revision}")  # type: ignore[arg-type]
    picture = wire.Reconstruction(**head, image=bytes([revision]))  # type: ignore[arg-type]
    return [score, caption, picture]


def test_a_picture_is_revised_in_place() -> None:
    board = Board()
    for message in decoded(0, final=False) + decoded(1, final=True):
        board.apply(message)
    (trial,) = board.state()["trials"]
    assert (trial["revision"], trial["final"], trial["caption"], trial["pictured"]) == (
        1,
        True,
        "caption 1",
        1,
    )
    assert board.picture("t1", 1) == b"\x01"
    assert board.picture("t1", 0) == b"\x00"


def test_replaced_pictures_are_forgotten_in_the_end() -> None:
    board = Board()
    for revision in range(REPLACED_PICTURES + 3):
        board.apply(decoded(revision, final=False)[2])
    assert board.picture("t1", 1) is None
    assert board.picture("t1", 2) is not None


def test_weak_evidence_is_marked() -> None:
    board = Board()
    for message in decoded(0, final=True, evidence=0.2):
        board.apply(message)
    assert board.state()["trials"][0]["weak"] is True


def test_state_is_json_without_nan_and_says_what_went_wrong() -> None:
    board = Board()
    board.apply(wire.Volume(run=1, volume=0, tsnr=float("nan"), motion=(0.0,) * 6, stages={"total": 20.0}))
    board.apply(wire.Skipped(run=1, volume=3, reason="truncated"))
    board.apply(wire.Fault(part="decode", reason="gone"))
    board.apply(wire.Score(run=1, trial="t9", invalid="all volumes missing", final=True, stages={"total": 1.0}))
    state = json.loads(json.dumps(board.state(), allow_nan=False))
    assert state["quality"]["tsnr"] is None
    text = " ".join(notice["text"] for notice in state["notices"])
    assert all(part in text for part in ("run 1, volume 3: truncated", "decode: gone", "t9: all volumes missing"))


def test_the_learning_curve_grows() -> None:
    board = Board()
    board.apply(wire.Calibration(trials=5))
    board.apply(wire.Calibration(trials=10, percentile=0.6, interval=(0.5, 0.7)))
    board.apply(wire.Calibration(trials=20, percentile=0.7, interval=(0.6, 0.8)))
    assert board.state()["curve"] == [[10, 0.6, 0.5, 0.7], [20, 0.7, 0.6, 0.8]]


def test_a_new_run_clears_the_trace_and_every_change_counts() -> None:
    board = Board()
    board.apply(wire.Volume(run=1, volume=0, motion=(0.0,) * 6, stages={"total": 20.0}))
    before = board.version
    board.apply(wire.Run(run=2, state="started"))
    assert board.state()["trace"] == []
    assert board.version == before + 1
    board.apply(wire.Embedding(run=2))
    assert board.version == before + 1
