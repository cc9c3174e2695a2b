"""How files of derivatives are called and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

TASK = "rtdecode"
"""BIDS label of the task of every session."""
REFERENCE, BRAIN_MASK, MODEL = "boldref.nii.gz", "desc-brain_mask.nii.gz", "desc-estimate_model.safetensors"
CALIBRATION_BETAS = "desc-calibration_betas.safetensors"
"""Betas of the calibration runs, all estimated by what these have taught."""
"""Ends of the names of what all runs share: reference volume, mask, and what calibration runs taught the estimator."""
Guard = Callable[[Path], AbstractContextManager[Path]]
"""Stands around the writing of each file; may swallow an OSError."""
_ORDER = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part")


def stem_name(entities: Mapping[str, str]) -> str:
    """Return the beginning of the names of all files of a run or session, its BIDS entities in their order."""
    return "_".join(f"{name}-{entities[name]}" for name in _ORDER if name in entities)


def run_stem(out: Path, entities: Mapping[str, str]) -> Path:
    """Return the folder of a run's files and the beginning of their names.

    Parameters
    ----------
    out : Path
        The dataset.
    entities : mapping of str to str
        BIDS labels; ``sub`` must be among them.
    """
    folder = out / f"sub-{entities['sub']}"
    if "ses" in entities:
        folder /= f"ses-{entities['ses']}"
    return folder / "func" / stem_name(entities)


def session_stem(out: Path, entities: Mapping[str, str]) -> Path:
    """Return the folder of what all runs share and the beginning of the names, from the entities of one of them.

    The task is told where it is not that of every session.
    """
    own = {name: label for name, label in entities.items() if name != "run" and (name, label) != ("task", TASK)}
    return run_stem(out, own)


def file_path(stem: Path, suffix: str) -> Path:
    """Return the file of a run or session that ends in `suffix`."""
    return stem.with_name(f"{stem.name}_{suffix}")


def figure_path(stem: Path, name: str) -> Path:
    """Return where a figure lies, as fMRIPrep has them: in the subject's folder `figures`, which is made.

    Parameters
    ----------
    stem : Path
        Folder and beginning of the names of the files that it belongs to.
    name : str
        What it shows.
    """
    subject = next((p for p in stem.parents if p.name.startswith("sub-") and "_" not in p.name), stem.parent)
    folder = subject / "figures"
    folder.mkdir(exist_ok=True)
    return folder / f"{stem.name}_desc-{name}plot_bold.png"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Let a file be written beside its place, which it takes once it is whole."""
    draft = path.with_name(f".{path.name}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
