"""A participant who was calibrated on an earlier day is decoded from the first trial on."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.errors import RtdecodeError, SettingsError
from rtdecode.packs import open_participant
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA
from rtdecode.packs.sealed import seal
from rtdecode.publish import requests
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Recorder, Rig, run_visit, settings_for

SECOND = replace(PLAN, calibration_runs=0, decoding_runs=1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Session folder of the calibrated visit."""
    return run_visit(tmp_path_factory.mktemp("first"), FakeClock())[1]


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    out = tmp_path_factory.mktemp("second")
    mask = nib.load(first / "bundle" / "mask.nii.gz")
    left = np.asarray(mask.dataobj).astype(np.uint8)
    left[: left.shape[0] // 2] = 0
    nib.save(nib.Nifti1Image(left, mask.affine), out / "left.nii.gz")
    return run_visit(
        out,
        FakeClock(),
        SECOND,
        session={"session": "02"},
        decode={"bundle": str(first / "bundle")},
        calibration={"runs": 6},  # as by default: a bundle decides, not the number of a run
        estimate={"regions": {"left": "left.nii.gz"}},
    )


def test_every_trial_is_decoded(second: tuple[Recorder, Path]) -> None:
    recorder, _ = second
    finals = [m for m in recorder.of(wire.Reconstruction) if m.final]
    assert [m.trial for m in finals] == [trial.trial for trial in SECOND.trials]
    assert not recorder.of(wire.Fault)


def test_another_head_than_the_calibrated_one_is_told(first: Path, tmp_path: Path) -> None:
    """Somebody else lies in the scanner, under the name of the participant."""
    stranger = replace(SECOND, seed=SECOND.seed + 1, trials_per_run=4)
    bundle = {"bundle": str(first / "bundle")}
    recorder, _ = run_visit(tmp_path, FakeClock(), stranger, session={"session": "02"}, decode=bundle)
    (fault,) = (m for m in recorder.of(wire.Fault) if m.kind == "head")
    assert re.fullmatch(r"expected the head that was calibrated, .* of 0\.8 or more .*, got 0\.[0-7]\d", fault.reason)


def test_the_session_is_said_to_decode_from_the_start_and_learns_nothing_of_its_own(
    second: tuple[Recorder, Path],
) -> None:
    recorder, folder = second
    assert {m.mode for m in recorder.of(wire.Session)} == {"decode"}
    assert not list(folder.rglob("*_desc-estimate_model.safetensors"))


def test_a_bundle_that_is_asked_for_under_way_decides_at_once(first: Path, tmp_path: Path) -> None:
    """The session's own bundle, made before its calibration runs were over, and the resume of that session."""
    at = 20
    clock = FakeClock()
    settings = settings_for(tmp_path, SECOND, session={"session": "01"}, calibration={"runs": 6})
    rig = Rig(settings, clock)
    bundle = tmp_path / "bundle"
    shutil.copytree(first / "bundle", bundle)
    provenance = json.loads((bundle / "provenance.json").read_text())
    session: Any = rig._recording.session
    seal(bundle, PARTICIPANT_SCHEMA, lambda draft: _copied(first / "bundle", draft, {**provenance, "session": session}))
    participant = make_participant(SECOND.seed, PROTOCOL, ResponseParameters(n_responsive=60))
    scanner = Scanner(SECOND, participant, settings.scanner.export_dir, clock, speed=1.0)

    def ask(run: int, volume: int) -> None:
        if volume == at:
            rig.request(requests.Mode, mode="decode", bundle=str(bundle))

    scanner.play(lambda message: rig.request(requests.Event, **message), on_volume=ask)
    clock.sleep(10.0)
    rig.finish()
    asked_s = (at + 1) * PROTOCOL.t_r_s
    decoded = {m.trial for m in rig.recorder.of(wire.Score) if m.final}
    due = {t.trial for t in SECOND.trials if t.onset_s + settings.estimate.final_at_s > asked_s + PROTOCOL.t_r_s}
    assert due
    assert due <= decoded < {t.trial for t in SECOND.trials}


def _copied(source: Path, draft: Path, provenance: dict[str, Any]) -> None:
    for path in source.iterdir():
        if path.name != "manifest.json":
            (draft / path.name).write_bytes(path.read_bytes())
    (draft / "provenance.json").write_text(json.dumps(provenance))


def test_packs_are_compared_on_the_session_folder_of_a_visit(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["engines", "compare", "tiny", "tiny", "--session", str(first)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [f"tiny: drawing {len(PLAN.of_run(3))} pictures"] * 2
    assert re.search(r"two-way identification \(chance 50%\) ([\d.]+)%, its teacher \1%: 0\.0 points lost", told[2])


def test_betas_are_of_the_calibrated_voxels(first: Path, second: tuple[Recorder, Path]) -> None:
    mask = np.asarray(nib.load(first / "bundle" / "mask.nii.gz").dataobj) > 0
    (own,) = second[1].rglob("*_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(own).dataobj) > 0, mask)
    (reference,) = second[1].rglob("*_boldref.nii.gz")
    calibrated = nib.load(first / "bundle" / "reference.nii.gz")
    np.testing.assert_array_equal(nib.load(reference).get_fdata(), calibrated.get_fdata())
    assert {m.beta.shape for m in second[0].of(wire.Beta)} == {(mask.sum(),)}


def test_the_operator_sees_where_the_head_lies(second: tuple[Recorder, Path]) -> None:
    (picture,) = second[1].rglob("*_desc-alignmentplot_bold.png")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 100).mean()
    assert 0.001 < red < 0.2


def test_regions_are_on_the_wire_and_in_a_table(second: tuple[Recorder, Path]) -> None:
    volumes = second[0].of(wire.Volume)
    assert all(set(v.regions) == {"left"} for v in volumes)
    (table,) = second[1].rglob("*_desc-roi_timeseries.tsv")
    rows = list(csv.DictReader(io.StringIO(table.read_text()), delimiter="\t"))
    assert len(rows) == len(volumes)  # row i is volume i
    got = [float(row["left"].replace("n/a", "nan")) for row in rows]
    np.testing.assert_allclose(got, [v.regions["left"] for v in volumes], rtol=1e-8)


def test_drift_is_told_with_every_score(second: tuple[Recorder, Path]) -> None:
    scores = [m for m in second[0].of(wire.Score) if m.final]
    assert [m.shift is None for m in scores] == [True, True] + [False] * (len(scores) - 2)
    assert all(0 < m.shift < 2 and 0 < m.spread < 2 for m in scores[2:])


def test_a_bundle_of_another_visit_cannot_be_loaded_under_way(first: Path, tmp_path: Path) -> None:
    rig = Rig(settings_for(tmp_path, PLAN, session={"session": "02"}), FakeClock())
    with pytest.raises(RtdecodeError, match=r"expected a calibration of session sim-02-.*, got sim-01-"):
        rig.request(requests.Mode, mode="decode", bundle=str(first / "bundle"))
    rig.finish()


def test_a_second_visit_takes_up_another_bundle_of_its_calibration(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the visit's fine-tuned bundle is one: the same betas, read by another network."""
    provenance = json.loads((first / "bundle" / "provenance.json").read_text())

    def other(name: str, *, changed: str | None = None) -> Path:
        def write(draft: Path) -> None:
            _copied(first / "bundle", draft, {**provenance, "seed": provenance["seed"] + 1})
            if changed is not None:
                shutil.copy(first / "bundle" / "reference.nii.gz", draft / changed)

        seal(tmp_path / name, PARTICIPANT_SCHEMA, write)
        return tmp_path / name

    settings = settings_for(
        tmp_path, PLAN, session={"session": "02"}, decode={"bundle": str(first / "bundle")}, calibration={"runs": 0}
    )
    clock = FakeClock()
    rig = Rig(settings, clock)
    for folder in (other("tuned"), first / "bundle"):
        with caplog.at_level("INFO", logger="rtdecode"):
            rig.request(requests.Mode, mode="decode", bundle=str(folder))
            clock.sleep(1.0)
        assert f"decoding with {folder}, {open_participant(folder).identity[:12]}" in caplog.text
    with pytest.raises(RtdecodeError, match=r"expected a calibration of session sim-02-.*, got sim-01-"):
        rig.request(requests.Mode, mode="decode", bundle=str(other("elsewhere", changed="mask.nii.gz")))
    rig.finish()


def test_a_bundle_of_another_participant_is_refused(first: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, PLAN, session={"participant": "other"}, decode={"bundle": str(first / "bundle")})
    with pytest.raises(RtdecodeError, match="expected a calibration of participant other, got sim"):
        Rig(settings, FakeClock())


def test_other_settings_than_the_calibrations_are_refused(first: Path, tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, PLAN, decode={"bundle": str(first / "bundle")}, estimate={"final_at_s": 9.0, "shrinkage": "none"}
    )
    with pytest.raises(SettingsError) as caught:
        Rig(settings, FakeClock())
    assert "$.estimate.final_at_s: expected 8.0 as in the calibration" in str(caught.value)
    assert "$.estimate.shrinkage: expected 'learned' as in the calibration" in str(caught.value)
