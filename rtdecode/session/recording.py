"""The session folder: journals, raw volumes and BIDS derivatives.

sub-01_ses-01/
  settings.toml, protocol.toml, dataset_description.json, README, .bidsignore
  journal/inputs.journal, journal/outputs.journal, journal/volumes/run-01/vol-0000.nii
  journal/lock                               names the process that records
  journal/unblinded.tsv                      scores and shams of a blinded session, once its seal was opened
  journal/scratch/                           what is large of earlier runs, until the session ends
  bundle/                                    the ParticipantBundle that a calibration wrote
  recon/<trial>_rev-<n>.webp
  sub-01/ses-01/func, sub-01/figures         what `rtdecode.derivatives` names
  sub-01/ses-01/func/..._desc-estimate_model.safetensors, ..._desc-calibration_betas.safetensors
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.clock import Clock
from rtdecode.decoded import DecodedPart
from rtdecode.derivatives import (
    CALIBRATION_BETAS,
    MODEL,
    TASK,
    DecodedTrials,
    RunDerivatives,
    Voxels,
    describe_dataset,
    figure_path,
    file_path,
    run_stem,
    session_stem,
    write_reference,
)
from rtdecode.disk import bring_to_disk
from rtdecode.errors import JournalError
from rtdecode.publish.pictures import KEPT, encoded
from rtdecode.records import BetaUpdate, TrialEvent, Volume
from rtdecode.session.entries import SessionEntry, read_inputs
from rtdecode.session.journal import Journal
from rtdecode.session.kept import KeptVolumes
from rtdecode.session.lock import FolderLock
from rtdecode.settings import SessionSettings

PROTOCOL = "protocol.toml"
_log = logging.getLogger(__name__)


def session_folder(session: SessionSettings) -> Path:
    """Return where a session is recorded."""
    return session.output / f"sub-{session.participant}_ses-{session.session}"


def settings_folder(folder: Path, raw: Mapping[str, Any]) -> Path:
    """Return the folder that relative paths in the settings of a session were relative to.

    Parameters
    ----------
    folder : Path
        The session, in ``session.output`` of that folder.
    raw : mapping
        Its settings file, as parsed.
    """
    output = PurePath(raw.get("session", {}).get("output", SessionSettings(participant="0").output))
    found = folder.resolve().parent
    for part in reversed(() if output.is_absolute() else output.parts):
        if part != found.name:
            break
        found = found.parent
    return found


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
        return str(next(entry.session for entry in read_inputs(path) if isinstance(entry, SessionEntry)))
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
    protocol : bytes or None
        The protocol's file, kept beside the settings.

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

    def __init__(
        self,
        session: SessionSettings,
        settings_text: str,
        clock: Clock,
        *,
        resume: bool = False,
        protocol: bytes | None = None,
    ) -> None:
        self.folder = session_folder(session)
        self._entities = {"sub": session.participant, "ses": session.session}
        self._stem = session_stem(self.folder, self._entities)
        if not resume:
            self._make(settings_text)
            if protocol is not None:
                (self.folder / PROTOCOL).write_bytes(protocol)
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
        self._runs: dict[int, RunDerivatives] = {}
        self._decoded = DecodedTrials(self.folder, self.stem, self.leaving_out, resume=resume)
        self._refolding = False
        self.saving = False

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
        return self._decoded.trials()

    def claim(self) -> float:
        """Evidence that the session decodes, over the trials in the tables; 1 before the first."""
        return self._decoded.claim()

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
        self._stem.parent.mkdir(parents=True)
        (self.folder / "settings.toml").write_text(settings_text, encoding="utf-8")
        describe_dataset(self.folder, "rtdecode session")
        for made in (self.folder / "journal", self.folder, self.folder.parent):
            bring_to_disk(made)

    def close(self) -> None:
        """Bring everything to the disk.

        Raises
        ------
        JournalError
            It does not take all.
        """
        self._decoded.close()
        for run in self._runs.values():
            run.close()
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

    def sync(self) -> bool:
        """Bring everything that was journalled so far to the disk, with what it tells of; return whether it took it."""
        return self.inputs.sync() and self._outputs.sync()  # a message after the inputs that it rests on

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

    def reference(self, space: Voxels) -> None:
        """Write the reference volume and the mask whose C order is the order of all betas."""
        write_reference(self._stem, space, self.leaving_out)

    def run(self, run: int) -> RunDerivatives:
        """Return the derivatives of a run."""
        if run not in self._runs:
            self._runs[run] = RunDerivatives(self.stem(run), self.leaving_out)
        return self._runs[run]

    def event(self, event: TrialEvent) -> None:
        """Add a trial to the events of its run."""
        self.run(event.run).event(event)

    def decoded(
        self,
        beta: BetaUpdate,
        found: Sequence[DecodedPart],
        picture: str | None,
        latency_ms: float,
    ) -> None:
        """Add a trial's final result; see `DecodedTrials.add`."""
        self._decoded.add(beta, found, picture, latency_ms)

    def model_path(self) -> Path:
        """Where what the calibration runs taught the estimator is kept."""
        return file_path(self._stem, MODEL)

    def calibration_betas_path(self) -> Path:
        """Where the betas of the calibration runs are kept, all of one kind."""
        return file_path(self._stem, CALIBRATION_BETAS)

    def alignment_path(self) -> Path:
        """Where the picture of the head's place in an earlier visit's space is kept."""
        return figure_path(self._stem, "alignment")

    def stem(self, run: int) -> Path:
        """Return folder and beginning of the names of a run's derivatives."""
        return run_stem(self.folder, {**self._entities, "task": TASK, "run": f"{run:02d}"})

    def picture(self, trial: str, revision: int, picture: NDArray[np.uint8]) -> str:
        """Keep a picture (h, w, 3) without loss, if there is room; return its path in the session folder, or none."""
        if self.saving:
            return ""
        target = self.folder / "recon" / f"{trial}_rev-{revision}.{KEPT}"
        kept = ""
        with self.leaving_out(target):
            target.write_bytes(encoded(picture, KEPT))
            kept = str(target.relative_to(self.folder))
        return kept

    @contextmanager
    def leaving_out(self, path: Path) -> Iterator[Path]:
        """Write a file that a session can do without: if the disk refuses it, that is told by `problem`."""
        try:
            yield path
        except OSError as error:
            self.incomplete = f"tables, plots and pictures are incomplete: {error.strerror or error}"
            _log.warning("%s: left out: %s", path.name, error)
