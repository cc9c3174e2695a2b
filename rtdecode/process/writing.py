"""Which files the derivatives of processed runs go to; `rtdecode.derivatives` writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rtdecode.derivatives import (
    RunDerivatives,
    Voxels,
    describe_dataset,
    figure_path,
    run_stem,
    session_stem,
    stem_name,
    write_reference,
)
from rtdecode.estimate.report import RunReport, overlay, place_of_head
from rtdecode.process.offline import Processed, ProcessedRun

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
    space = Voxels(reference=found.reference, affine=found.affine, mask=found.mask, centre_mm=found.centre_mm)
    labels = _labels([run.name for run in found.runs], entities or {})
    for run, own in zip(found.runs, labels, strict=True):
        stem = run_stem(out, own)
        stem.parent.mkdir(parents=True, exist_ok=True)
        if run is found.runs[0]:
            session = session_stem(out, own)
            write_reference(session, space)
            if found.first is not None:
                target = figure_path(session, "alignment")
                overlay(found.reference, found.first, target, place_of_head(run.volumes[0]))
        _write_run(found, run, stem, space, every_volume=every_volume)
    describe_dataset(out, "rtdecode process", SourceDatasets=[{"URL": path.name} for path in sources])


def _write_run(found: Processed, run: ProcessedRun, stem: Path, space: Voxels, *, every_volume: bool) -> None:
    derivatives, report = RunDerivatives(stem), RunReport()
    censor_fd_mm = found.settings.censor_fd_mm
    for event in run.events:
        derivatives.event(event)
    reasons = {skipped.volume: skipped.reason for skipped in run.skipped}
    used = {volume.stamp.volume: volume for volume in run.volumes}
    for index in range(run.length):
        if index in used:
            derivatives.volume(used[index])
            report.add(used[index])
        elif index in reasons:
            derivatives.skipped(index, reasons[index])
    derivatives.finish(
        run.finals,
        t_r_s=run.t_r_s,
        settings=found.settings,
        space=space,
        figures=report.summary(),
        problems=run.problems,
    )
    if every_volume:
        derivatives.revisions(run.betas, found.settings, space)
    report.write(stem, space.mask, space.affine, censor_fd_mm, run.design)


def _labels(names: Sequence[str], given: Mapping[str, str]) -> list[dict[str, str]]:
    """Take the BIDS entities from file names; what a name lacks is made up, so that no two are the same."""
    labels: list[dict[str, str]] = []
    for name in names:
        matches = (_ENTITY.match(part) for part in name.split("_"))
        entities = {match[1]: match[2] for match in matches if match}
        task = given.get("task") or entities.get("task") or re.sub(r"[^A-Za-z0-9]", "", name) or "bold"
        labels.append({"sub": "01", **entities, **given, "task": task})
    if len({stem_name(entities) for entities in labels}) < len(labels):
        labels = [{**entities, "run": f"{number:02d}"} for number, entities in enumerate(labels, start=1)]
    return labels
