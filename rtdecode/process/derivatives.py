"""BIDS derivatives of processed runs.

OUT/dataset_description.json, README, .bidsignore
OUT/sub-01/func/sub-01_task-x_boldref.nii.gz, ..._desc-brain_mask.nii.gz
  ..._run-1_desc-motion_timeseries.tsv and .json     one row a volume; mm and radians
  ..._run-1_desc-quality_timeseries.tsv              one row a volume
  ..._run-1_desc-roi_timeseries.tsv                  one row a volume, one column a region
  ..._run-1_desc-quality_summary.json, ..._run-1_stat-tsnr_boldmap.nii.gz
  sub-01/figures/..._run-1_desc-motionplot_bold.png, -carpetplot_, -tsnrplot_, -designplot_; with a bundle,
    ..._desc-alignmentplot_bold.png
  ..._run-1_desc-trial_betas.nii.gz and .json, ..._run-1_desc-trial_events.tsv      row i is volume i
  ..._run-1_desc-trial_stderr.nii.gz                 where standard errors were asked for
  ..._run-1_desc-revision_betas.nii.gz, ..._run-1_desc-revision_events.tsv          the same for every revision
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode.dataset import describe_dataset, figure_path
from rtdecode.estimate.report import RunReport, overlay
from rtdecode.process.offline import Processed, ProcessedRun
from rtdecode.process.tables import MOTION_NAMES
from rtdecode.records import BetaUpdate

MOTION_COLUMNS = (*MOTION_NAMES, "framewise_displacement")
QUALITY_COLUMNS = ("volume", "dvars", "tsnr", "fit", "censored", "skipped")
TRIAL_COLUMNS = (
    "onset", "duration", "trial_type", "trial", "stim_id", "revision", "final", "time_after_onset", "volume",
    "invalid",
)  # fmt: skip
_ENTITY = re.compile(r"^(sub|ses|task|acq|ce|dir|rec|run|echo|part)-([A-Za-z0-9]+)$")


def write(
    found: Processed,
    out: Path,
    *,
    sources: Sequence[Path],
    every_volume: bool,
    entities: Mapping[str, str] | None = None,
) -> None:
    """Write the derivatives of all runs.

    Parameters
    ----------
    found : Processed
    out : Path
        Folder; made if absent, files in it are replaced.
    sources : sequence of Path
        What was processed, for the description.
    every_volume : bool
        Also write every revision.
    entities : mapping of str to str, or None
        BIDS labels that replace those of the recordings' names.
    """
    stems = _stems([run.name for run in found.runs], entities or {})
    for run, labels in zip(found.runs, stems, strict=True):
        folder = out / f"sub-{labels['sub']}"
        if "ses" in labels:
            folder /= f"ses-{labels['ses']}"
        folder /= "func"
        folder.mkdir(parents=True, exist_ok=True)
        if run is found.runs[0]:
            session = folder / _stem({k: v for k, v in labels.items() if k != "run"})
            _nifti(found.reference, found.affine, _file(session, "boldref.nii.gz"))
            _nifti(found.mask.astype(np.uint8), found.affine, _file(session, "desc-brain_mask.nii.gz"))
            if found.first is not None:
                title = (
                    f"first volume (red outline) over the calibration's reference: correlation {run.volumes[0].fit:.3f}"
                )
                overlay(found.reference, found.first, figure_path(session, "alignment"), title)
        stem = folder / _stem(labels)
        _write_motion(found, run, stem)
        _write_quality(found, run, stem)
        _write_regions(run, stem)
        if run.betas:
            _write_betas(found, run.finals, stem, "trial")
            if every_volume:
                _write_betas(found, run.betas, stem, "revision")
    describe_dataset(out, "rtdecode process", SourceDatasets=[{"URL": path.name} for path in sources])


def _stems(names: Sequence[str], given: Mapping[str, str]) -> list[dict[str, str]]:
    """Take the BIDS entities from file names; what a name lacks is made up, so that no two are the same."""
    stems: list[dict[str, str]] = []
    for name in names:
        matches = (_ENTITY.match(part) for part in name.split("_"))
        entities = {match[1]: match[2] for match in matches if match}
        task = given.get("task") or entities.get("task") or re.sub(r"[^A-Za-z0-9]", "", name) or "bold"
        stems.append({"sub": "01", **entities, **given, "task": task})
    if len({_stem(entities) for entities in stems}) < len(stems):
        stems = [{**entities, "run": f"{number:02d}"} for number, entities in enumerate(stems, start=1)]
    return stems


def _stem(entities: Mapping[str, str]) -> str:
    order = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part")
    return "_".join(f"{name}-{entities[name]}" for name in order if name in entities)


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}_{suffix}")


def _write_motion(found: Processed, run: ProcessedRun, stem: Path) -> None:
    rows: list[list[str]] = [["n/a"] * len(MOTION_COLUMNS) for _ in range(run.length)]
    for volume in run.volumes:
        rows[volume.stamp.volume] = [f"{x:.9g}" for x in (*volume.motion.tolist(), volume.fd_mm)]
    _table(_file(stem, "desc-motion_timeseries.tsv"), MOTION_COLUMNS, rows)
    turned: dict[str, Any] = {"Units": "rad"}
    if found.centre_mm is not None:
        turned["RotationCentre_mm"] = found.centre_mm.tolist()
    sidecar = {
        "Description": (
            "Rigid motion that takes RAS mm of the reference to RAS mm of each volume: x, y and z rotations in "
            "this order about the centre, then the translations; rows without a usable volume are n/a"
        ),
        "RepetitionTime": run.t_r_s,
        **{name: {"Units": "mm"} for name in MOTION_NAMES[:3]},
        **{name: turned for name in MOTION_NAMES[3:]},
        "framewise_displacement": {"Units": "mm", "Description": "Power et al. 2012, 50 mm; 0 for the first volume"},
    }
    _json(_file(stem, "desc-motion_timeseries.json"), sidecar)


def _write_quality(found: Processed, run: ProcessedRun, stem: Path) -> None:
    rows: list[list[str]] = [[str(i), "n/a", "n/a", "n/a", "n/a", "missing"] for i in range(run.length)]
    for skipped in run.skipped:
        if skipped.volume is not None:
            rows[skipped.volume][-1] = skipped.reason
    for volume in run.volumes:
        numbers = [f"{x:.6g}" if np.isfinite(x) else "n/a" for x in (volume.dvars, volume.tsnr, volume.fit)]
        censored = int(volume.fd_mm > found.settings.censor_fd_mm)
        rows[volume.stamp.volume] = [str(volume.stamp.volume), *numbers, str(censored), "n/a"]
    _table(_file(stem, "desc-quality_timeseries.tsv"), QUALITY_COLUMNS, rows)
    report = RunReport()
    for volume in run.volumes:
        report.add(volume)
    report.write(stem, found.mask, found.affine, found.settings.censor_fd_mm, run.design)
    summary = {
        "Source": run.name,
        "RepetitionTime": run.t_r_s,
        "Volumes": run.length,
        "VolumesSkipped": len(run.skipped),
        **report.summary(found.settings.censor_fd_mm),
        "Trials": len(run.finals),
        "TrialsInvalid": {b.event.trial: b.invalid for b in run.finals if b.invalid is not None},
        "Problems": list(run.problems),
    }
    _json(_file(stem, "desc-quality_summary.json"), summary)


def _write_regions(run: ProcessedRun, stem: Path) -> None:
    names = list(dict.fromkeys(name for volume in run.volumes for name in volume.regions))
    if not names:
        return
    rows = [["n/a"] * len(names) for _ in range(run.length)]
    for volume in run.volumes:
        found = [volume.regions.get(name, math.nan) for name in names]
        rows[volume.stamp.volume] = [f"{x:.6g}" if math.isfinite(x) else "n/a" for x in found]
    _table(_file(stem, "desc-roi_timeseries.tsv"), names, rows)
    _json(_file(stem, "desc-roi_timeseries.json"), {name: {"Units": "percent signal change"} for name in names})


def _write_betas(found: Processed, betas: Sequence[BetaUpdate], stem: Path, description: str) -> None:
    maps = {"betas": [beta.beta for beta in betas]}
    errors = [beta.standard_error for beta in betas if beta.standard_error is not None]
    if len(errors) == len(betas):
        maps["stderr"] = errors
    for name, values in maps.items():
        data = np.zeros((*found.mask.shape, len(values)), np.float32)
        data[found.mask] = np.stack(values, axis=1)
        _nifti(data, found.affine, _file(stem, f"desc-{description}_{name}.nii.gz"))
    rows = [_trial_row(beta) for beta in betas]
    _table(_file(stem, f"desc-{description}_events.tsv"), TRIAL_COLUMNS, rows)
    sidecar = {
        "Description": "Causal single-trial response estimates; volume i belongs to row i of the events table",
        "Units": "percent signal change",
        "Trials": [beta.event.trial for beta in betas],
        "TimeAfterOnset_s": [beta.delay_s for beta in betas],
        "Shrinkage": found.settings.shrinkage,
        "HRF": found.settings.hrf,
        "Confounds": found.settings.confounds,
    }
    _json(_file(stem, f"desc-{description}_betas.json"), sidecar)


def _trial_row(beta: BetaUpdate) -> list[str]:
    event = beta.event
    texts = (event.condition, event.trial, event.stimulus)
    return [
        f"{event.onset_s:g}",
        f"{event.duration_s:g}",
        *("n/a" if text is None else text.replace("\t", " ") for text in texts),
        str(beta.revision),
        str(int(beta.final)),
        f"{beta.delay_s:.6g}",
        str(beta.stamp.volume),
        "n/a" if beta.invalid is None else beta.invalid,
    ]


def _nifti(data: NDArray[Any], affine: NDArray[np.float64], target: Path) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(target)


def _table(target: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = ["\t".join(row) for row in (columns, *rows)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _json(target: Path, content: Mapping[str, Any]) -> None:
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
