"""The calibration client against a stream that is a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest

from calibration.advice import Pace, Plan
from calibration.earlier_visit import EarlierVisit
from calibration.visit_client import STARTING, CalibrationRun
from rtdecode.client import Array, Beta, Client, Message, RequestError, Run, Session
from rtdecode.errors import CalibrationError
from rtdecode.estimate.reestimate import CalibrationBetas, save_betas
from rtdecode.packs import open_participant
from rtdecode.settings import CalibrationSettings
from tests.decode_small import (
    N_VOXELS,
    Calibrator,
    category_beta,
    category_calibrator,
    tiny_categories,
    tiny_pack,
    tiny_stages,
)


class ListClient:
    """Hands out messages; keeps what it is told."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self.statuses: list[dict[str, Any]] = []
        self.modes: list[tuple[str, str, int | None]] = []
        self.at = "01-01"

    def catch_up(self) -> None:
        pass

    def snapshot(self) -> list[Message]:
        return [message for message in self._messages if isinstance(message, Session)][-1:]

    def messages(self) -> Iterator[Message]:
        for message in self._messages:
            self.at = message.session if isinstance(message, Session) else self.at
            yield message

    def calibration(self, *, session: str, **status: Any) -> None:
        self._check(session)
        self.statuses.append(status)

    def pending(self) -> bool:
        return False

    def mode(self, mode: str, bundle: str, last_run: int | None = None, *, session: str) -> None:
        self._check(session)
        self.modes.append((mode, bundle, last_run))

    def _check(self, session: str) -> None:
        """Refuse what is meant for another session than the daemon is at, as it does."""
        if session != self.at:
            raise RequestError(f"the request is meant for session {session}, this is {self.at}", "session")


def session(folder: Path, state: str = "running") -> Session:
    return Session(session="01-01", state=state, folder=str(folder), participant="01", calibration_runs=4)


def beta(run: int, category: int, rng: np.random.Generator, **changes: Any) -> Beta:
    values = category_beta(category, 0.5, rng)
    content: dict[str, Any] = {
        "session": "01-01",
        "run": run,
        "trial": f"r{run}c{category}",
        "final": True,
        "condition": tiny_stages().categories[category],
        "beta": Array("<f4", (N_VOXELS,), values.tobytes()),
    }
    return Beta(**{**content, **changes})


def visit(folder: Path) -> list[Message]:
    rng = np.random.default_rng(0)
    messages: list[Message] = [session(folder)]
    for run in range(1, 6):
        messages.append(Run(session="01-01", run=run, state="started"))
        for category in range(8):
            messages.append(beta(run, category, rng, final=False))
            messages.append(beta(run, category, rng))
        messages.append(Run(session="01-01", run=run, state="ended"))
    return messages


def calibration_run(client: ListClient, folder: Path, lines: list[str] | None = None, **changes: Any) -> CalibrationRun:
    told = [] if lines is None else lines
    calibrator = Calibrator(tiny_categories(), leave_out="run")
    settings = CalibrationSettings(null_stimuli=("null", "blank"), **changes)
    return CalibrationRun(cast(Client, client), calibrator, tiny_pack(), folder, settings, told.append)


def with_reference(folder: Path, betas: CalibrationBetas | None = None) -> Path:
    func = folder / "sub-01" / "ses-01" / "func"
    func.mkdir(parents=True)
    (func / "sub-01_ses-01_boldref.nii.gz").write_bytes(b"reference")
    (func / "sub-01_ses-01_desc-brain_mask.nii.gz").write_bytes(b"mask")
    (func / "sub-01_ses-01_desc-estimate_model.safetensors").write_bytes(b"model")
    rest = np.zeros((0, N_VOXELS), np.float32)
    none = CalibrationBetas(trials={}, rest=rest, rest_run=np.zeros(0, np.int64))
    save_betas(func / "sub-01_ses-01_desc-calibration_betas.safetensors", none if betas is None else betas)
    return folder


def test_final_betas_of_the_calibration_runs_make_a_bundle(tmp_path: Path) -> None:
    client = ListClient(visit(with_reference(tmp_path)))
    folder = calibration_run(client, tmp_path).run()
    bundle = open_participant(folder)
    assert bundle.provenance.trials == 32
    assert bundle.provenance.pack == tiny_pack().identity
    assert (folder / "mask.nii.gz").read_bytes() == b"mask"
    assert client.modes == [("decode", str(folder), 4)]
    assert [status["trials"] for status in client.statuses] == [*range(1, 33), 32]
    assert client.statuses[-1]["p_value"] < 0.01
    assert client.statuses[-1]["note"].startswith("fitted: ")


@pytest.mark.parametrize("same", [True, False])
def test_trials_of_an_earlier_visit_are_learned_from_again_where_voxels_are_the_same(
    tmp_path: Path, same: bool
) -> None:
    messages = visit(with_reference(tmp_path))
    (now,) = tmp_path.rglob("*_desc-brain_mask.nii.gz")
    for path, first in ((tmp_path / "then.nii.gz", 0), (now, 0 if same else 1)):
        voxels = np.zeros((4, 3, 2), np.uint8)
        voxels[first : first + 2] = 1
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    earlier = EarlierVisit(
        session="01-00",
        mask=tmp_path / "then.nii.gz",
        candidates=tiny_categories(),
        trials=category_calibrator(runs=3, noise=0.5).taken(),
    )
    lines: list[str] = []
    run = calibration_run(ListClient(messages), tmp_path, lines)
    run.calibrator = Calibrator(tiny_categories(), leave_out="run", earlier=earlier)
    if not same:
        with pytest.raises(CalibrationError, match="expected the 12 voxels of the earlier session 01-00"):
            run.run()
        return
    provenance = open_participant(run.run()).provenance
    assert (provenance.trials, provenance.earlier_trials, provenance.earlier_session) == (32 + 24, 24, "01-00")
    assert lines.count("24 trials of session 01-00 are learned from again") == 1
    assert lines[-2] == "the calibration runs are complete: fitting 32 trials beside 24 of session 01-00"


def test_unusable_trials_are_left_out_and_named(tmp_path: Path) -> None:
    messages = visit(with_reference(tmp_path))
    rng = np.random.default_rng(1)
    messages[3] = beta(1, 0, rng, invalid="no volumes after onset", beta=None)
    messages[5] = beta(1, 1, rng, condition="dog", stimulus="spot")
    folder = calibration_run(ListClient(messages), tmp_path).run()
    provenance = open_participant(folder).provenance
    assert provenance.trials == 30
    assert provenance.left_out == [
        "r1c0: no volumes after onset",
        "r1c1: unknown stimulus 'spot', condition 'dog'",
    ]


@pytest.mark.parametrize("unknown", [False, True])
def test_a_calibration_without_trials_is_told_as_such(tmp_path: Path, unknown: bool) -> None:
    messages = [one for one in visit(tmp_path) if not isinstance(one, Beta)]
    for run in range(1, 5) if unknown else ():
        shown = beta(run, 1, np.random.default_rng(run), condition="dog", stimulus="spot")
        messages.insert(messages.index(Run(session="01-01", run=run, state="ended")), shown)
    client, lines = ListClient(messages), list[str]()
    why = "4 were left out, first r1c1: unknown stimulus 'spot'" if unknown else "none was announced"
    with pytest.raises(CalibrationError, match=f"got none: {why}"):
        calibration_run(client, tmp_path, lines).run()
    assert client.modes == []
    silent = [line for line in lines if "no trial came in this run" in line]
    assert len(silent) == (0 if unknown else 4)


def test_where_nothing_can_be_supported_it_is_said(tmp_path: Path) -> None:
    messages = [m for m in visit(with_reference(tmp_path)) if not isinstance(m, Beta) or (m.run or 0) < 3]
    lines: list[str] = []
    calibration_run(ListClient(messages), tmp_path, lines).run()
    assert re.match(
        r"no trial will be shown as supported: expected at least 19 .*, got 0; show 40 to 60 content-free", lines[-1]
    )


def test_betas_that_were_estimated_again_are_what_is_fitted(tmp_path: Path) -> None:
    messages = visit(tmp_path)
    rng = np.random.default_rng(7)
    finals = [m for m in messages if isinstance(m, Beta) and m.final]
    again = {str(m.trial): rng.standard_normal(N_VOXELS).astype(np.float32) for m in finals}
    rest = CalibrationBetas(
        trials=again,
        rest=rng.standard_normal((24, N_VOXELS)).astype(np.float32),
        rest_run=np.repeat(np.arange(1, 5), 6),
    )
    with_reference(tmp_path, rest)
    bundle = open_participant(calibration_run(ListClient(messages), tmp_path).run())
    calibrated = np.stack([beta for trial, beta in again.items() if not trial.startswith("r5")])
    np.testing.assert_allclose(bundle.adapter["mean"], calibrated.mean(0)[bundle.adapter["voxels"]], atol=1e-5)
    assert bundle.provenance.rest == len(bundle.evidence["rest"]) == 24


def test_trials_without_a_picture_are_collected_apart(tmp_path: Path) -> None:
    messages = visit(with_reference(tmp_path))
    rng = np.random.default_rng(1)
    alone = open_participant(calibration_run(ListClient(list(messages)), tmp_path).run())
    for number in range(24):
        told = {"condition": "blank"} if number % 2 else {"condition": None, "stimulus": "null"}
        messages.insert(2, beta(1 + number % 4, 0, rng, trial=f"n{number}", **told))
    messages.insert(2, beta(1, 0, rng, trial="late", condition="null", invalid="no volumes after onset", beta=None))
    messages.insert(2, beta(5, 0, rng, trial="decoded", condition="null"))
    alone.folder.rename(tmp_path / "alone")
    client, lines = ListClient(messages), list[str]()
    bundle = open_participant(calibration_run(client, tmp_path, lines).run())
    assert not any("no trial will be shown as supported" in line for line in lines)
    told_of = bundle.provenance
    assert (told_of.trials, told_of.null_trials, told_of.null) == (32, 24, "null trials")
    assert told_of.left_out == ["late: no volumes after onset"]
    assert [status["trials"] for status in client.statuses] == [*range(1, 33), 32]
    for name, tensor in alone.encoding.items():
        if name not in ("near", "noise_range"):  # of evidence
            np.testing.assert_array_equal(tensor, bundle.encoding[name])


def test_a_decoder_is_handed_over_again_and_again_while_calibration_goes_on(tmp_path: Path) -> None:
    client, lines = ListClient(visit(with_reference(tmp_path))), list[str]()
    folder = calibration_run(client, tmp_path, lines, bundle_every=12).run()
    early = [tmp_path / f"bundle-after-{n:04d}-trials" for n in (12, 24)]
    assert client.modes == [*(("decode", str(one), None) for one in early), ("decode", str(folder), 4)]
    assert [open_participant(one).provenance.trials for one in (*early, folder)] == [12, 24, 32]
    assert "a decoder of 12 trials is with the daemon; calibration goes on" in lines


def test_an_early_decoder_that_cannot_be_had_stops_nothing(tmp_path: Path) -> None:
    client, lines = ListClient(visit(with_reference(tmp_path))), list[str]()
    folder = calibration_run(client, tmp_path, lines, bundle_every=4).run()
    assert open_participant(folder).provenance.trials == 32
    assert any(line.startswith("no early decoder after 4 trials: expected at least 8") for line in lines)


def test_trials_that_wait_are_measured_at_once(tmp_path: Path) -> None:
    class Hasty(ListClient):
        """Seven messages of eight have another one behind them."""

        def pending(self) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked % 8 != 0

    client = Hasty(visit(with_reference(tmp_path)))
    folder = calibration_run(client, tmp_path).run()
    told = [status["trials"] for status in client.statuses]
    assert told == sorted(told)
    assert len(set(told)) < 30
    assert told[-2:] == [32, 32]
    assert open_participant(folder).provenance.trials == 32


@pytest.mark.parametrize("stop", ["runs", "advice"])
def test_calibration_ends_after_the_run_by_which_more_is_not_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    def advise(trials: int, *_: object) -> tuple[str, str]:
        return ("enough", "8 more trials add nothing") if trials >= 20 else ("go on", "more add a lot")

    monkeypatch.setattr("calibration.curve_point.advise", advise)
    client, lines = ListClient(visit(with_reference(tmp_path))), list[str]()
    folder = calibration_run(client, tmp_path, lines, stop=stop).run()
    last = 3 if stop == "advice" else 4
    assert client.modes == [("decode", str(folder), last)]
    assert open_participant(folder).provenance.trials == 8 * last
    assert [line for line in lines if "worth their time: more" in line or line.startswith("enough: ")] == [
        "more trials are worth their time: more add a lot", "enough: 8 more trials add nothing",
    ]  # fmt: skip
    assert [status["advice"] for status in client.statuses][7:21] == ["go on"] * 12 + ["enough"] * 2


def test_the_plan_follows_from_the_runs_that_are_over() -> None:
    pace = Pace()
    assert pace.plan(4) == Plan()
    for run in (1, 2):
        for onset_s in (6.0, 10.0, 14.0, 18.0):
            pace.trial(run, onset_s)
    pace.trial(3, 6.0)
    assert pace.plan(4) == Plan(trials=16, per_minute=pytest.approx(15.0))
    assert pace.plan(None).trials is None


def test_a_session_that_ends_early_gives_no_bundle(tmp_path: Path) -> None:
    messages = [*visit(tmp_path)[:20], session(tmp_path, state="ended")]
    client = ListClient(messages)
    with pytest.raises(CalibrationError, match="ended after"):
        calibration_run(client, tmp_path).run()
    assert client.modes == []


def test_a_session_without_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="expected one"):
        calibration_run(ListClient(visit(tmp_path)), tmp_path).run()


@pytest.mark.parametrize("failures", [3, STARTING])
def test_a_daemon_that_is_being_started_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    client = ListClient(visit(with_reference(tmp_path)))
    left = iter(range(failures))

    def away() -> None:
        if next(left, None) is not None:
            raise TimeoutError("no answer")

    monkeypatch.setattr(client, "catch_up", away)
    if failures < STARTING:
        assert calibration_run(client, tmp_path).run() == tmp_path / "bundle"
    else:
        with pytest.raises(CalibrationError, match="no answer"):
            calibration_run(client, tmp_path).run()
    assert sum("does not answer" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("error", [RequestError("another pack"), TimeoutError("no answer")])
def test_a_daemon_that_refuses_or_is_silent_is_named(error: Exception, tmp_path: Path) -> None:
    class Refusing(ListClient):
        def mode(self, mode: str, bundle: str, last_run: int | None = None, *, session: str) -> None:
            raise error

    with pytest.raises(CalibrationError, match=str(error)):
        calibration_run(Refusing(visit(with_reference(tmp_path))), tmp_path).run()


@pytest.mark.parametrize("early", [False, True])
def test_the_next_session_is_told_nothing_of_the_one_before(tmp_path: Path, early: bool) -> None:
    """The daemon is at the next session before this client hears of it: it was measuring, or fitting."""

    class Ahead(ListClient):
        def messages(self) -> Iterator[Message]:
            for message in super().messages():
                run_3 = isinstance(message, Run) and message.run == 3
                last = isinstance(message, Run) and (message.run, message.state) == (4, "ended")
                self.at = "02-01" if (run_3 if early else last) else self.at
                yield message

    client, lines = Ahead(visit(with_reference(tmp_path))), list[str]()
    with pytest.raises(CalibrationError, match=r"the session is over; it is in .*bundle: name"):
        calibration_run(client, tmp_path, lines, bundle_every=8).run()
    assert open_participant(tmp_path / "bundle").provenance.trials == 32
    assert len(client.modes) == (2 if early else 4)
    assert [status["trials"] for status in client.statuses] == list(range(1, 17 if early else 33))
    over = "session 01-01 is over: the request is meant for session 01-01, this is 02-01"
    assert lines.count(over) == (16 + 2 + 1 if early else 1)


def test_what_goes_on_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    calibration_run(ListClient(visit(with_reference(tmp_path))), tmp_path, lines).run()
    assert lines[:3] == [
        "waiting for the session",
        "session 01-01, participant 01: waiting for the trials of 4 calibration runs",
        "calibration run 1 of 4 started: 0 trials so far",
    ]
    assert lines[3] == "1 trials: too few yet to tell them apart"
    rank = r"20 trials: held-out percentile rank \d+% \[\d+%, \d+%\], chance 50 %, p = 0\.\d{3}"
    assert any(re.fullmatch(rank, line) for line in lines)
    assert any(line == "calibration run 3 of 4 ended: 24 trials so far" for line in lines)
    assert not any("no trial came" in line for line in lines)
    assert lines[-2] == "the calibration runs are complete: fitting 32 trials"
    assert re.fullmatch(r"fitted in \d+\.\d s: .* held out; handing the bundle to the daemon", lines[-1])
    assert not any("run 5 of 4" in line for line in lines)


def test_trials_of_another_session_are_never_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    first = visit(tmp_path)[:30]
    late = first[-1]  # of the first session, after the second began
    renamed = [replace(message, session="02-01") for message in visit(with_reference(tmp_path / "second"))]
    renamed[0] = replace(renamed[0], participant="02")
    lines: list[str] = []
    client = ListClient([*first, *renamed[:10], late, Run(session="01-01", run=4, state="ended"), *renamed[10:]])
    run = calibration_run(client, tmp_path / "first", lines)
    folder = run.run()
    assert folder == tmp_path / "second" / "bundle"
    alone = calibration_run(ListClient(renamed), tmp_path / "second")
    (tmp_path / "second" / "bundle").rename(tmp_path / "mixed")
    alone.run()
    one, other = (open_participant(path) for path in (tmp_path / "mixed", folder))
    assert one.provenance.trials == 32
    np.testing.assert_array_equal(one.adapter["weights"], other.adapter["weights"])
    (said,) = [line for line in lines if "another session" in line]
    assert "another session began: 02-01, participant 02; the 13 trials of 01-01 are put aside" in said


def test_a_session_that_decodes_from_its_start_is_not_calibrated(tmp_path: Path) -> None:
    messages = [replace(session(tmp_path), mode="decode"), *visit(tmp_path)[1:]]
    with pytest.raises(CalibrationError, match="decodes with a bundle from its start"):
        calibration_run(ListClient(messages), tmp_path).run()


@pytest.mark.parametrize(("late", "trials"), [(True, 32), (False, 16)])
def test_a_calibration_that_is_begun_again_forgets_what_came_before(tmp_path: Path, late: bool, trials: int) -> None:
    """Who comes late learns at once from where on trials calibrate; who was there puts aside what it had."""
    rng = np.random.default_rng(1)
    before = visit(with_reference(tmp_path))[1:]
    again = replace(session(tmp_path), calibration_from=(3.0, 5.0), calibration_runs=7)
    more: list[Message] = []
    for run in (6, 7):
        more += [beta(run, category, rng) for category in range(8)]
        more.append(Run(session="01-01", run=run, state="ended"))
    started = replace(session(tmp_path), calibration_runs=6)
    messages = [started, *before, replace(again, mode="decode"), *more]
    messages = [replace(m, onset_s=4.0 if m.run == 3 else 9.0) if isinstance(m, Beta) else m for m in messages]
    client = ListClient(messages)
    if not late:
        client.snapshot = lambda: [started]  # type: ignore[method-assign]
    lines: list[str] = []
    folder = calibration_run(client, tmp_path, lines).run()
    assert lines[1].endswith("waiting for the trials of " + ("runs 3 to 7" if late else "6 calibration runs"))
    assert folder.name == "bundle-from-run-03"
    assert open_participant(folder).provenance.trials == trials
    assert client.modes == [("decode", str(folder), 7)]


def test_a_run_that_was_marked_as_bad_leaves_the_calibration(tmp_path: Path) -> None:
    messages = visit(with_reference(tmp_path))
    place = next(n for n, m in enumerate(messages) if isinstance(m, Run) and m.run == 3)
    messages.insert(place, replace(session(tmp_path), bad_runs=(2,)))
    place = next(n for n, m in enumerate(messages) if isinstance(m, Beta) and m.run == 4) + 4
    messages.insert(place, replace(session(tmp_path), bad_runs=(2, 4)))
    lines: list[str] = []
    bundle = open_participant(calibration_run(ListClient(messages), tmp_path, lines).run())
    assert bundle.provenance.trials == 16
    assert "run 2 was marked as bad: 8 trials of it are left out" in lines
    assert bundle.provenance.left_out[0].endswith("its run was marked as bad")
