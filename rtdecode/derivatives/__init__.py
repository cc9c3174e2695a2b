"""The one writer of BIDS derivatives, for sessions, resumed sessions and `rtdecode process`.

sub-01/ses-01/func/
  sub-01_ses-01_boldref.nii.gz, ..._desc-brain_mask.nii.gz        the space of all betas
  sub-01_ses-01_task-x_run-01_...
    events.tsv                      trials in the order in which they were announced
    desc-motion_timeseries.tsv      row i is volume i; mm and radians
    desc-quality_timeseries.tsv     row i is volume i, with the reason why it was skipped
    desc-roi_timeseries.tsv         row i is volume i; one column a region of the settings
    desc-trial_betas.nii.gz, desc-trial_events.tsv                row i is volume i; invalid trials with their reason
    desc-quality_summary.json, stat-tsnr_boldmap.nii.gz
    desc-trial_stderr.nii.gz, desc-revision_betas.nii.gz, desc-revision_events.tsv   of `process`, where asked for
    desc-decoded_events.tsv         of a session: decoded trials in the order of decoding
sub-01/figures/
  ..._desc-motionplot_bold.png, -carpetplot_, -tsnrplot_, -designplot_, -alignmentplot_ (with an earlier visit's bundle)

Every table and 4-D image has a JSON sidecar that tells columns and units. What is missing is ``n/a`` in tables and nan
in images. A file that is not written row by row appears only when it is whole.
"""

from rtdecode.derivatives.columns import DECODED_COLUMNS, EVENT_COLUMNS, MOTION_NAMES, NONE, read_table
from rtdecode.derivatives.dataset import describe_dataset
from rtdecode.derivatives.decoded_trials import DecodedTrials, decoded_rows
from rtdecode.derivatives.images import Voxels, write_image, write_reference
from rtdecode.derivatives.names import (
    BRAIN_MASK,
    CALIBRATION_BETAS,
    MODEL,
    REFERENCE,
    TASK,
    figure_path,
    file_path,
    run_stem,
    session_stem,
    stem_name,
)
from rtdecode.derivatives.one_run import RunDerivatives, trial_problems

__all__ = [
    "BRAIN_MASK",
    "CALIBRATION_BETAS",
    "DECODED_COLUMNS",
    "EVENT_COLUMNS",
    "MODEL",
    "MOTION_NAMES",
    "NONE",
    "REFERENCE",
    "TASK",
    "DecodedTrials",
    "RunDerivatives",
    "Voxels",
    "decoded_rows",
    "describe_dataset",
    "figure_path",
    "file_path",
    "read_table",
    "run_stem",
    "session_stem",
    "stem_name",
    "trial_problems",
    "write_image",
    "write_reference",
]
