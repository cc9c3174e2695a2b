"""The session folder: journals, raw volumes and BIDS derivatives.

sub-01_ses-01/
  settings.toml, dataset_description.json, README, .bidsignore
  journal/inputs.journal, journal/outputs.journal, journal/volumes/run-01/vol-0000.nii
  journal/lock                               names the process that records
  journal/scratch/                           what is large of earlier runs, until the session ends
  bundle/                                    the ParticipantBundle that a calibration wrote
  recon/<trial>_rev-<n>.webp
  sub-01/ses-01/func/..._boldref.nii.gz, ..._desc-brain_mask.nii.gz, ..._desc-estimate_model.safetensors,
  sub-01/ses-01/func/..._run-01_events.tsv, ..._run-01_desc-motion_timeseries.tsv, ..._run-01_desc-roi_timeseries.tsv,
    ..._run-01_desc-trial_betas.nii.gz and .json, ..._run-01_desc-decoded_events.tsv,
    ..._run-01_desc-quality_summary.json, ..._run-01_stat-tsnr_boldmap.nii.gz,
  sub-01/figures/..._run-01_desc-motionplot_bold.png, -carpetplot_, -tsnrplot_, -designplot_,
    ..._desc-alignmentplot_bold.png (with the bundle of an earlier visit)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode import decoded
from rtdecode.clock import Clock
from rtdecode.dataset import describe_dataset, figure_path
from rtdecode.decoded import Part
from rtdecode.errors import JournalError
from rtdecode.records import BetaUpdate, RegisteredVolume, TrialEvent, Volume
from rtdecode.session.journal import Journal, read
from rtdecode.session.kept import KeptVolumes
from rtdecode.session.lock import FolderLock
from rtdecode.settings import SessionSettings

_log = logging.getLogger(__name__)
TASK = "rtdecode"
MOTION_COLUMNS = (
    "volume", "trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement", "dvars",
    "tsnr", "fit",
)  # fmt: skip
EVENT_COLUMNS = ("onset", "duration", "trial_type", "trial", "stim_id")
DECODED_COLUMNS = (*EVENT_COLUMNS, *decoded.columns(), "revisions", "recon", "latency_ms")


def session_folder(session: SessionSettings) -> Path:
    """Return where a session is recorded."""
    return session.output / f"sub-{session.participant}_ses-{session.session}"


def session_name(session: SessionSettings) -> str:
    """Return the name of a session; its identifier, which no other recording has, begins with it."""
    return f"{session.participant}-{session.session}"


def session_identifier(folder: Path) -> str:
    """Return the identifier of a recorded session.

    Raises
    ------
    JournalError
        There is none, or its journal is damaged.
    """
    path = folder / "journal" / "inputs.journal"
    try:
        return str(next(record["session"] for record in read(path) if record["kind"] == "session"))
    except OSError as error:
        raise JournalError(f"{folder}: no session to resume: {error}") from None
    except StopIteration:
        raise JournalError(f"{path}: expected the session's identifier among the records, found none") from None


class Recording:
    """The open session folder. Journals are written before what they tell of is used.

    Volumes and journals that the disk refuses are held in memory and written when it takes them again. Tables and
    pictures that it refuses are left out: a resume makes the tables anew.

    Parameters
    ----------
    session : SessionSettings
    settings_text : str
        The settings file, kept beside the data.
    clock : Clock
    resume : bool
        Go on with a session that was interrupted.

    Attributes
    ----------
    folder : Path
    session : str
        Identifier that messages and stamps carry: of this recording alone, also where one of the same name was made
        before elsewhere.
    incomplete : str or None
        Why tables, plots or pictures were left out, once some were; volumes and journals are not among these.
    saving : bool
        Set while disk space is short: pictures are then not kept.

    Raises
    ------
    JournalError
        The folder exists already or cannot be made; or, to resume, there is none, its journal is damaged or another
        process records in it.
    """

    def __init__(self, session: SessionSettings, settings_text: str, clock: Clock, *, resume: bool = False) -> None:
        self.folder = session_folder(session)
        self._stem = f"sub-{session.participant}_ses-{session.session}"
        self._func = self.folder / f"sub-{session.participant}" / f"ses-{session.session}" / "func"
        if not resume:
            self._make(settings_text)
        journals = self.folder / "journal"
        self._lock = FolderLock(journals / "lock", clock)
        self._kept = KeptVolumes(journals / "volumes")
        self.inputs = Journal(
            journals / "inputs.journal", clock, ready=self._kept.write_held, before_sync=self._kept.sync, resume=resume
        )
        self._outputs = Journal(journals / "outputs.journal", clock, resume=resume)
        if resume:
            self.session = session_identifier(self.folder)
        else:
            began = datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y%m%dT%H%M%S")
            self.session = f"{session_name(session)}-{began}"
            self.inputs.append("session", session=self.session)
        self._place = os.stat(self.folder)
        self.incomplete: str | None = None
        self.scratch = journals / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self._tables: dict[Path, TextIO] = {}
        self._refolding = False
        self.saving = False
        if resume:
            for path in self._func.glob("*_desc-decoded_events.tsv"):
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
                self._tables[path] = path.open("a", encoding="utf-8", buffering=1)

    @property
    def problem(self) -> str | None:
        """Why volumes and journals cannot be written; None while they can."""
        try:
            moved = not os.path.samestat(os.stat(self.folder), self._place)
        except OSError:
            moved = True
        if moved:
            return "the session folder is not where it was: it was moved or removed"
        return self._kept.problem or self.inputs.problem or self._outputs.problem

    @contextmanager
    def refolding(self) -> Iterator[None]:
        """While inputs are folded again, tables but that of decoded trials are written anew, decisions are not."""
        self._refolding = True
        yield
        self._refolding = False

    def decided(self) -> set[str]:
        """Trials whose final result is in a table."""
        tables = self._func.glob("*_desc-decoded_events.tsv")
        lines = (line for path in tables for line in path.read_text(encoding="utf-8").splitlines()[1:])
        return {line.split("\t")[DECODED_COLUMNS.index("trial")] for line in lines}

    def decision(self, kind: str, **fields: Any) -> None:
        """Journal what time has decided."""
        if not self._refolding:
            self.inputs.append(kind, **fields)

    def _make(self, settings_text: str) -> None:
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise JournalError(
                f"{self.folder}: this session is already recorded; go on with it by --resume, or choose another "
                "[session] session or output"
            ) from None
        except OSError as error:
            raise JournalError(f"{self.folder}: cannot be made: {error}") from None
        for folder in ("journal/volumes", "recon"):
            (self.folder / folder).mkdir(parents=True)
        self._func.mkdir(parents=True)
        (self.folder / "settings.toml").write_text(settings_text, encoding="utf-8")
        describe_dataset(self.folder, "rtdecode session")

    def close(self) -> None:
        """Bring everything to the disk.

        Raises
        ------
        JournalError
            It does not take all.
        """
        for table in self._tables.values():
            with suppress(OSError):
                table.close()
        self.inputs.close()
        self._outputs.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        problem = self.problem
        self._lock.close()
        if problem is not None:
            raise JournalError(f"{self.folder}: not all of the session could be written: {problem}")
        if self.incomplete is not None:
            raise JournalError(
                f"{self.folder}: {self.incomplete}; all volumes and journals are there: rtdecode run SETTINGS --resume "
                "--reopen writes the tables and plots anew"
            )

    def output(self, topic: bytes, payload: bytes) -> int:
        """Journal one message before it is sent; return where `published` finds it."""
        return self._outputs.append("output", topic=topic.decode(), payload=payload)

    def published(self, places: Iterable[int]) -> Iterator[bytes]:
        """Yield the payloads of messages that were journalled at these places.

        Raises
        ------
        JournalError
            One cannot be read back.
        """
        return (record["payload"] for record in self._outputs.at(places))

    def keep(self, volume: Volume) -> None:
        """Keep the stored values of a volume; see `KeptVolumes.keep`."""
        self._kept.keep(volume)

    def sync_if_due(self) -> None:
        """Write what was held; bring volumes and journals to the disk that have stayed in the cache for a second."""
        self._kept.write_held()
        self.inputs.sync_if_due()
        self._outputs.sync_if_due()

    def arrival(self, volume: Volume) -> None:
        """Journal that a volume came, with all that its NIfTI header does not hold to the last digit."""
        stamp = volume.stamp
        self.inputs.append(
            "volume",
            run=stamp.run,
            volume=stamp.volume,
            path=volume.path,
            kept=str(self._kept.path(volume).relative_to(self.folder)),
            series_uid=volume.series_uid,
            instance=volume.instance,
            slope=float(volume.slope),
            intercept=float(volume.intercept),
            affine=volume.affine.ravel().tolist(),
            t_r_s=volume.t_r_s,
            t_r_measured=volume.t_r_measured,
            slice_times_s=None if volume.slice_times_s is None else volume.slice_times_s.tolist(),
            acquired_s=stamp.acquired_s,
            received_s=stamp.received_s,
            problems=list(volume.problems),
        )

    def reference(self, data: NDArray[Any], mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> None:
        """Write the reference volume and the mask whose C order is the order of all betas."""
        for values, name in ((np.asarray(data, np.float32), "boldref"), (mask.astype(np.uint8), "desc-brain_mask")):
            with self.leaving_out(self._func / f"{self._stem}_{name}.nii.gz") as target:
                nib.Nifti1Image(values, affine).to_filename(target)

    def event(self, event: TrialEvent) -> None:
        """Add a trial to the events table of its run."""
        self._row(
            event.run,
            "events.tsv",
            EVENT_COLUMNS,
            (event.onset_s, event.duration_s, event.condition, event.trial, event.stimulus),
        )

    def motion(self, volume: RegisteredVolume) -> None:
        """Add a volume to the motion table of its run, mm and radians, and to that of its regions, percent."""
        numbers = (*volume.motion.tolist(), volume.fd_mm, volume.dvars, volume.tsnr, volume.fit)
        self._row(
            volume.stamp.run,
            "desc-motion_timeseries.tsv",
            MOTION_COLUMNS,
            (volume.stamp.volume, *(f"{x:.6g}" for x in numbers)),
        )
        if volume.regions:
            self._row(
                volume.stamp.run,
                "desc-roi_timeseries.tsv",
                ("volume", *volume.regions),
                (volume.stamp.volume, *(f"{x:.6g}" for x in volume.regions.values())),
            )

    def decoded(
        self,
        beta: BetaUpdate,
        found: Sequence[Part],
        picture: str | None,
        latency_ms: float,
    ) -> None:
        """Add a trial's final result.

        Parameters
        ----------
        beta : BetaUpdate
        found : sequence of Part
            All that was decoded of it.
        picture : str or None
            As `picture` returned it; None where the pack makes none.
        latency_ms : float
            From the volume's file to the last of these.
        """
        event = beta.event
        values = (
            event.onset_s, event.duration_s, event.condition, event.trial, event.stimulus, *decoded.row(found),
            beta.revision + 1, picture, f"{latency_ms:.1f}",
        )  # fmt: skip
        self._row(event.run, "desc-decoded_events.tsv", DECODED_COLUMNS, values)

    def betas(
        self, run: int, finals: Sequence[BetaUpdate], mask: NDArray[np.bool_], affine: NDArray[np.float64]
    ) -> None:
        """Write the final betas of a run as one 4-D NIfTI with a JSON sidecar naming its trials."""
        usable = [b for b in finals if b.invalid is None]
        if not usable:
            return
        data = np.zeros((*mask.shape, len(usable)), np.float32)
        data[mask] = np.stack([b.beta for b in usable], axis=1)
        sidecar = {
            "Description": "Causal single-trial response estimates",
            "Units": "percent signal change",
            "Trials": [b.event.trial for b in usable],
            "DelayAfterOnset_s": [b.delay_s for b in usable],
            "Invalid": {b.event.trial: b.invalid for b in finals if b.invalid is not None},
        }
        with self.leaving_out(self._path(run, "desc-trial_betas.nii.gz")) as target:
            nib.Nifti1Image(data, affine).to_filename(target)
            target.with_name(target.name.replace(".nii.gz", ".json")).write_text(
                json.dumps(sidecar, indent=1) + "\n", encoding="utf-8"
            )

    def model_path(self) -> Path:
        """Where what the calibration runs taught the estimator is kept."""
        return self._func / f"{self._stem}_desc-estimate_model.safetensors"

    def alignment_path(self) -> Path:
        """Where the picture of the head's place in an earlier visit's space is kept."""
        return figure_path(self._func / self._stem, "alignment")

    def quality(self, run: int, summary: Mapping[str, Any]) -> None:
        """Write the quality figures of a run."""
        with self.leaving_out(self._path(run, "desc-quality_summary.json")) as target:
            target.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def stem(self, run: int) -> Path:
        """Return folder and beginning of the names of a run's derivatives."""
        return self._func / f"{self._stem}_task-{TASK}_run-{run:02d}"

    def picture(self, trial: str, revision: int, encoded: bytes) -> str:
        """Keep a picture, if there is room; return its path in the session folder, or an empty one."""
        if self.saving:
            return ""
        target = self.folder / "recon" / f"{trial}_rev-{revision}.webp"
        kept = ""
        with self.leaving_out(target):
            target.write_bytes(encoded)
            kept = str(target.relative_to(self.folder))
        return kept

    def _path(self, run: int, suffix: str) -> Path:
        stem = self.stem(run)
        return stem.with_name(f"{stem.name}_{suffix}")

    def _row(self, run: int, suffix: str, columns: Sequence[str], values: Sequence[object]) -> None:
        with self.leaving_out(self._path(run, suffix)) as path:
            table = self._tables.get(path)
            if table is None:
                table = self._tables[path] = path.open("w", encoding="utf-8", buffering=1)
                table.write("\t".join(columns) + "\n")
            table.write("\t".join("n/a" if v is None else " ".join(str(v).split()) for v in values) + "\n")

    @contextmanager
    def leaving_out(self, path: Path) -> Iterator[Path]:
        """Write a file that a session can do without: if the disk refuses it, that is told by `problem`."""
        try:
            yield path
        except OSError as error:
            self.incomplete = f"tables, plots and pictures are incomplete: {error.strerror or error}"
            _log.warning("%s: left out: %s", path.name, error)
