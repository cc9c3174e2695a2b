"""Labels and networks of parcels, from the table that comes with an atlas."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from rtdecode.errors import SettingsError

_NETWORK = re.compile(r"\d+Networks_[LR]H_([A-Za-z]+)")


def read_parcel_names(path: Path) -> tuple[list[str], list[str]]:
    """Read label and network of each column of a prediction, in the order of the file.

    Parameters
    ----------
    path : Path
        Tab-separated, with a head: ``index`` (label in the image) and ``name``, as BIDS has it; ``network`` where names
        are not those of Schaefer's atlas (``7Networks_LH_Vis_1``).

    Returns
    -------
    labels, networks : list of str
        No networks where they are not known of all.

    Raises
    ------
    SettingsError
        The file cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"--parcels: expected a readable table: {path}: {error}"]) from None
    if not rows or not {"index", "name"} <= rows[0].keys():
        raise SettingsError([f"--parcels: expected columns index and name, separated by tabs: {path}"])
    networks = [row.get("network") or _of_name(row["name"]) for row in rows]
    return [row["index"].strip() for row in rows], networks if all(networks) else []


def _of_name(name: str) -> str:
    found = _NETWORK.match(name)
    return "" if found is None else found[1]
