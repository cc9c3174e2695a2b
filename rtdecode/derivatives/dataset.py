"""What makes a folder a BIDS dataset of derivatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rtdecode.version import __version__

_BIDS_IGNORED = (
    "journal", "recon", "bundle", "settings.toml", "evaluation.*", "*_boldref.nii.gz", "*_boldmap.nii.gz", "*_betas.*",
    "*_desc-brain_mask.nii.gz", "*_stderr.nii.gz", "*_desc-trial_events.*", "*_desc-revision_events.*",
    "*_desc-decoded_events.*", "*_timeseries.*", "figures", "*_summary.json", "*_model.safetensors",
)  # fmt: skip
"""Files that BIDS has no name for yet, among them those of derivatives of time series, as in fMRIPrep's output."""
_README = """motion, quality and causal single-trial responses of BOLD runs, as rtdecode computed them volume by volume.
The sidecar of a table or image tells its units. Files that the BIDS standard has no name for are in .bidsignore.
"""


def describe_dataset(folder: Path, name: str, **more: Any) -> None:
    """Make a folder a BIDS dataset of derivatives: its description, a readme, and the files that BIDS has no name for.

    Parameters
    ----------
    folder : Path
    name : str
    more
        Further fields of the description.
    """
    description = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "rtdecode", "Version": __version__}],
        **more,
    }
    (folder / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (folder / "README").write_text(f"{name}: {_README}", encoding="utf-8")
    (folder / ".bidsignore").write_text("".join(f"{pattern}\n" for pattern in _BIDS_IGNORED), encoding="utf-8")
